import sys
from pathlib import Path

import pytest

from tests.support.nvml import FAKE, FakeGpus


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """Two of them, found by this process too."""
    fake = FakeGpus(tmp_path / "nvml")
    monkeypatch.setenv("FAKE_NVML", fake.env["FAKE_NVML"])
    monkeypatch.syspath_prepend(FAKE)
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    return fake


@pytest.fixture(autouse=True)
def _forget_the_fake() -> None:
    """Whoever comes next is to find the real one."""
    sys.modules.pop("pynvml", None)
