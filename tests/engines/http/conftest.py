import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import uvloop

from app.engines.http import HttpEngine, Limits, Timeouts
from app.reliability.watch import Watch
from tests.engines.http.replica import Replica, open_files, turns


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class FakeClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def watch(clock: FakeClock) -> Watch:
    return Watch(clock)


@pytest.fixture
def timeouts() -> Timeouts:
    return Timeouts(connect_s=1, first_byte_s=10, idle_s=5)


@pytest.fixture
def limits() -> Limits:
    return Limits(max_header_bytes=4_096, max_event_bytes=64 * 1024, max_answer_bytes=1024 * 1024)


@pytest.fixture
async def nothing_left(watch: Watch) -> AsyncIterator[None]:
    """No task, no open file, no watched wait and no complaint of the event loop outlives the test."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    await turns(2)
    files, tasks = open_files(), asyncio.all_tasks()
    yield
    for _ in range(200):
        if open_files() <= files and asyncio.all_tasks() <= tasks:
            break
        await asyncio.sleep(0)
    gc.collect()
    assert open_files() <= files
    assert asyncio.all_tasks() <= tasks
    assert len(watch) == 0
    assert complaints == []


@pytest.fixture
async def replica(nothing_left: None) -> AsyncIterator[Replica]:
    async with Replica().listening() as replica:
        yield replica


@pytest.fixture
async def engine(replica: Replica, watch: Watch, timeouts: Timeouts, limits: Limits) -> AsyncIterator[HttpEngine]:
    engine = HttpEngine(f"http://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts, limits=limits)
    yield engine
    assert engine.open_connections == engine.idle_connections, "an exchange has left its connection open"
    assert len(watch) == 0, "an exchange has left itself in the watch"
    await engine.aclose()
    assert engine.open_connections == 0
