"""A worker over real child processes, and what it leaves behind: nothing."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import uvloop

from app.cluster.control import Order, Status, WorkerState
from app.cluster.launchers.plan import Place
from app.cluster.launchers.process import KEEPER
from app.cluster.worker.life import Pace
from app.cluster.worker.site import Post
from app.cluster.worker.worker import LocalWorker
from app.settings import Engine

ME = psutil.Process()
TOO_LONG_S = 60
QUICK = Pace(start_s=20, try_s=1, look_s=0.1, hung_s=1.0, grace_s=0.5, headless_s=1.0)
SCRIPTED = Path(__file__).with_name("scripted.py")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """As gateways and workers run."""
    return {"uvloop": uvloop.new_event_loop}


def keepers() -> list[psutil.Process]:
    return [child for child in ME.children() if str(KEEPER) in _command(child)]


def _command(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.NoSuchProcess:  # a zombie, too
        return []
    return words


def family() -> list[psutil.Process]:
    return [one for keeper in keepers() for one in (keeper, *keeper.children(recursive=True))]


def engine_process() -> psutil.Process:
    (keeper,) = keepers()
    (engine,) = keeper.children()
    return engine


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """After every test: no process, no file descriptor, no task of ours."""
    warm_up = await asyncio.create_subprocess_exec(
        "true", stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    await warm_up.wait()
    fds, children = ME.num_fds(), set(ME.children())
    yield
    await asyncio.sleep(0.01)
    for _ in range(100):
        if set(ME.children()) <= children and ME.num_fds() <= fds:
            break
        await asyncio.sleep(0.05)  # a process that was cut off while it was started is buried a moment later
    assert set(ME.children()) <= children
    assert ME.num_fds() <= fds
    assert len(asyncio.all_tasks()) == 1  # this one


class Bench:
    """One worker at a time on a folder of its own, with all that it told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.seen: list[Status] = []

    def build(self, engine: Engine, place: Place) -> tuple[list[str], dict[str, str]]:
        where = ["--host", place.host, "--port", str(place.port), "--folder", str(self.folder)]
        names = ["--names", *(place.names or (engine.served_name,))]
        return [sys.executable, str(SCRIPTED), "--model", engine.model, *where, *names, *engine.args], {}

    @asynccontextmanager
    async def worker(
        self, pace: Pace = QUICK, heartbeat_s: float = 0.1, **engine: object
    ) -> AsyncIterator[LocalWorker]:
        settings = Engine(**{"type": "vllm", "port_start": 24_200, **engine})  # type: ignore[arg-type]
        made = LocalWorker(
            Post("w", gpus=settings.gpus),
            settings,
            self.folder,
            on_progress=lambda name, line: self.lines.append(line),
            heartbeat_s=heartbeat_s,
            build=self.build,
            pace=replace(pace),
            first_pause_s=0.01,
        )
        async with asyncio.timeout(TOO_LONG_S), asyncio.TaskGroup() as tasks:
            async with made as worker:
                watching = tasks.create_task(self._watch(worker))
                await asyncio.sleep(0.01)
                yield worker
            await watching

    async def _watch(self, worker: LocalWorker) -> None:
        """As a gateway looks."""
        version = -1
        while not self.seen or self.seen[-1].state is not WorkerState.STOPPED:
            status = await worker.status(version, 30)
            version = status.version
            self.seen.append(status)

    @property
    def states(self) -> list[WorkerState]:
        """Each once, in their order."""
        states = [status.state for status in self.seen]
        return [state for before, state in zip([None, *states], states, strict=False) if state is not before]

    @property
    def steps(self) -> list[str]:
        steps = [status.progress.step for status in self.seen if status.progress]
        return [step for before, step in zip([None, *steps], steps, strict=False) if step != before]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def until(worker: LocalWorker, true: Callable[[Status], bool]) -> Status:
    status = await worker.status()
    while not true(status):
        status = await worker.status(status.version, 30)
    return status


async def settled(worker: LocalWorker) -> Status:
    ends = (WorkerState.READY, WorkerState.FAILED, WorkerState.EMPTY)
    return await until(worker, lambda status: status.state in ends)


async def loaded(worker: LocalWorker, model: str, drain_s: float = 5, force: bool = False, **order: object) -> Status:
    await worker.load(Order(model=model, **order), drain_s=drain_s, force=force)  # type: ignore[arg-type]
    return await settled(worker)
