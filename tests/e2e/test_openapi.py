"""Schemathesis, over our own OpenAPI document, against the live gateway over the real engine."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, clean_environment, comes_true

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = 30
WORKERS = "^/(add_worker|load_model|release_gpus|admin/(models|swap|workers|adapters))"
"""What commands workers is not tried: a worker may be anywhere that its URL says."""


@pytest.fixture(scope="module")
def brief(engine: Engine, logs: Path) -> Iterator[GatewayProcess]:
    """A gateway whose answers are short where nobody says how long they shall be."""
    with running(GatewayProcess("brief", free_port(), logs, ENGINE_URLS=engine.url, MAX_TOKENS="4")) as gateway:
        yield gateway


@pytest.mark.timeout(180)
def test_whatever_is_sent_gets_an_answer_that_the_document_promises(
    brief: GatewayProcess, engine: Engine, tmp_path: Path
) -> None:
    """No 5xx but the documented 501; every status, content type and error body as documented; nonsense is refused."""
    taken = engine.taken()
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)]
    command += ["run", f"{brief.url}/openapi.json", "--max-examples", str(EXAMPLES), "--seed", "2", "--no-shrink"]
    command += ["--exclude-path-regex", WORKERS]
    # one worker: `ast.parse` of CPython 3.11, which generation uses, is not safe with threads
    command += ["--workers", "1", "--request-timeout", "25", "--continue-on-failure"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean_environment(COLUMNS="160"))
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    assert "Tested: 18" in done.stdout, done.stdout[-2_000:]
    assert engine.taken() - taken > 20, "nothing of it was a valid request"
    assert comes_true(lambda: (engine.at_work(), brief.in_flight()) == (0, 0), 2)
