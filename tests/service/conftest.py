"""The library over real engines, and over small programs that stand in for them."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.cluster.launchers import plan
from app.cluster.launchers.process import KEEPER
from gllm import LLMConfig, ServeConfig, VLLMService
from tests.cluster.launchers.scripts import running
from tests.support.processes import comes_true

ROOT = Path(__file__).parents[2]
DEMO = LLMConfig(str(ROOT / "models" / "demo"), dtype="float32")

StandIn = Callable[[str], None]


@pytest.fixture(autouse=True)
def where_logs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those of failures stay."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def service() -> Iterator[VLLMService]:
    """Two servers of the demo model. Other tests count their children, so these end with the module."""
    serving = ServeConfig(gpu_ids=[0, 1], port=24_100, engine="transformers", client_timeout=60)
    with VLLMService(DEMO, serving) as running:
        yield running


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Started instead of the Transformers engine: a script that gets its port."""

    def start_instead(script: str) -> None:
        monkeypatch.setitem(plan.BUILDS, "transformers", running(script))

    return start_instead


@pytest.fixture
def nothing_is_left(where_logs_go: Path) -> Iterator[None]:
    """After the test: no process, no descriptor and no file that were not there before."""
    before, open_files = keepers(), psutil.Process().num_fds()
    yield
    assert keepers() == before
    assert comes_true(lambda: psutil.Process().num_fds() <= open_files, 2), "descriptors are left"
    assert logs(where_logs_go) == []


def keepers() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if str(KEEPER) in each.cmdline()]


def family(parent: psutil.Process) -> list[psutil.Process]:
    found: list[psutil.Process] = parent.children(recursive=True)
    return found


def logs(folder: Path) -> list[Path]:
    return sorted(folder.glob("gllm-*/*"))


def environment(**added: Any) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **added}


def program(code: str) -> list[str]:
    """A Python program in which `transformers` engines are stand-ins that only become healthy."""
    prelude = (
        "from app.cluster.launchers import plan\n"
        "from tests.cluster.launchers import scripts\n"
        "plan.BUILDS['transformers'] = scripts.running(scripts.HEALTHY)\n"
        "from gllm import LLMConfig, ServeConfig, VLLMServer, VLLMService\n"
    )
    return [sys.executable, "-c", prelude + code]
