"""One real engine and one real gateway for all tests here; more of them only where a test breaks what it uses."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, Server, comes_true

S = TypeVar("S", bound=Server)

_running: list[Server] = []


@contextmanager
def running(process: S, ready: str = "/health") -> Iterator[S]:
    """Ready within the block, and ended with it. While it lives, a failing test shows what it said last."""
    _running.append(process)
    try:
        process.await_ready(ready)
        yield process
    finally:
        process.end()
        _running.remove(process)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"what {process.name} said", process.tail()) for process in _running]
    return report


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="package")
def engine(logs: Path) -> Iterator[Engine]:
    """The Transformers engine on the demo model, small enough that its queue can be filled."""
    with running(Engine("engine", free_port(), logs, "--max-num-seqs", "16", "--max-queue", "48")) as process:
        yield process


@pytest.fixture(scope="package")
def gateway(engine: Engine, logs: Path) -> Iterator[GatewayProcess]:
    with running(GatewayProcess("gateway", free_port(), logs, ENGINE_URLS=engine.url)) as process:
        yield process


@pytest.fixture
def well(engine: Engine, gateway: GatewayProcess) -> Iterator[None]:
    """Around a test that misbehaves: afterwards nothing is left in flight, and a good request is answered."""
    yield
    assert gateway.http.post("/v1/completions", json={"prompt": "Docker is", "max_tokens": 2}).status_code == 200
    assert comes_true(lambda: (engine.at_work(), gateway.in_flight()) == (0, 0), limit_s=2)
