"""An engine as a child, over real processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.process import KEEPER, EngineProcess
from tests.cluster.launchers import scripts

ME = psutil.Process()
TOO_LONG_S = 60
KILLED = 128 + signal.SIGKILL


def keepers() -> list[psutil.Process]:
    return [child for child in ME.children() if str(KEEPER) in child.cmdline()]


def family() -> list[psutil.Process]:
    return [one for keeper in keepers() for one in (keeper, *keeper.children(recursive=True))]


class Said:
    """What an engine told, and a way to wait for more of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = asyncio.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self._news.set()

    async def until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            self._news.clear()
            await self._news.wait()


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """After every test: no process, no file descriptor, no task of ours."""
    warm_up = await asyncio.create_subprocess_exec(
        "true", stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    await warm_up.wait()  # uvloop opens a descriptor once and keeps it
    fds = ME.num_fds()
    yield
    await asyncio.sleep(0.01)
    assert family() == []
    assert ME.num_fds() <= fds
    assert len(asyncio.all_tasks()) == 1  # this one


@asynccontextmanager
async def started(
    script: str, tmp_path: Path, said: Said, *, grace_s: float = 0.5, argv: list[str] | None = None
) -> AsyncIterator[EngineProcess]:
    command = argv or [sys.executable, "-c", script, "0"]
    log = LogFile(tmp_path / "engine.log")
    try:
        async with (
            asyncio.timeout(TOO_LONG_S),
            await EngineProcess.start(command, dict(os.environ), log=log, told=said, grace_s=grace_s) as process,
        ):
            yield process
    finally:
        log.close()


async def test_what_it_says_is_told_kept_and_written(tmp_path: Path, said: Said) -> None:
    async with started(scripts.HEALTHY, tmp_path, said) as process:
        await said.until(lambda: said.lines == ["loading"])
        assert process.tail == ["loading"]
        assert not process.ended
    assert (tmp_path / "engine.log").read_text() == "loading\n"


async def test_its_exit_code_is_its_own(tmp_path: Path, said: Said) -> None:
    async with started(scripts.REFUSES, tmp_path, said) as process:
        assert await process.wait() == 3
        assert process.tail == ["no such model: nowhere/at-all"]


async def test_a_command_that_does_not_exist_is_told(tmp_path: Path, said: Said) -> None:
    async with started("", tmp_path, said, argv=["/no/such/engine"]) as process:
        await process.wait()
        assert process.tail == ["/no/such/engine cannot be started: No such file or directory"]


async def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, said: Said) -> None:
    async with started(scripts.STUBBORN, tmp_path, said) as process:
        await said.until(lambda: "ready" in said.lines)
    assert await process.wait() == KILLED


async def test_what_an_engine_started_ends_with_it(tmp_path: Path, said: Said) -> None:
    async with started(scripts.HAS_CHILDREN, tmp_path, said):
        await said.until(lambda: bool(said.lines))
        assert len(family()) == 4  # keeper, engine, and its two
    assert not any(psutil.pid_exists(int(pid)) for pid in said.lines[0].split()[1:])


async def test_what_an_engine_started_ends_with_it_when_it_crashes(tmp_path: Path, said: Said) -> None:
    async with started(scripts.HAS_CHILDREN, tmp_path, said) as process:
        await said.until(lambda: bool(said.lines))
        keepers()[0].children()[0].kill()
        assert await process.wait() == KILLED
        assert not any(psutil.pid_exists(int(pid)) for pid in said.lines[0].split()[1:])


async def test_a_killed_keeper_takes_its_engine_along(tmp_path: Path, said: Said) -> None:
    async with started(scripts.STUBBORN, tmp_path, said) as process:
        await said.until(lambda: "ready" in said.lines)
        keepers()[0].kill()
        assert await process.wait() == KILLED


async def test_one_that_talks_much_is_not_held_up(tmp_path: Path, said: Said) -> None:
    async with started(scripts.CHATTERS, tmp_path, said):
        await said.until(lambda: len(said.lines) == 60_000)
    logs = await asyncio.to_thread(lambda: {file.name: file.stat().st_size for file in tmp_path.iterdir()})
    assert logs.keys() == {"engine.log", "engine.log.1"}
    assert sum(logs.values()) - 60_000 * 200 in (0, 1)  # the end of the last line may come apart from it
    assert max(logs.values()) <= 10 * 2**20


async def test_being_cancelled_while_it_ends_waits_for_no_grace(tmp_path: Path, said: Said) -> None:
    async def run() -> None:
        async with started(scripts.STUBBORN, tmp_path, said, grace_s=60):
            await asyncio.Event().wait()

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run())
        await said.until(lambda: "ready" in said.lines)
        running.cancel()
        await asyncio.sleep(0.2)
        running.cancel()
        await asyncio.wait([running])


async def test_who_outlives_a_killed_keeper_and_holds_its_pipes_hides_no_death(tmp_path: Path, said: Said) -> None:
    async with started(scripts.HAS_CHILDREN, tmp_path, said) as process:
        await said.until(lambda: bool(said.lines))
        left = [psutil.Process(int(pid)) for pid in said.lines[0].split()[1:]]
        keepers()[0].kill()
        try:
            async with asyncio.timeout(10):
                assert await process.wait() == KILLED
        finally:
            for each in left:
                each.kill()
