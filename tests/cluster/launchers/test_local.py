"""The launcher over real child processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from app.cluster.launchers.local import LocalEngine, LocalLauncher, State
from app.cluster.launchers.losses import EngineDidNotStart, EngineLost
from app.cluster.launchers.process import KEEPER
from app.settings import Engine
from tests.cluster.launchers import scripts

ME = psutil.Process()
TOO_LONG_S = 60


def keepers() -> list[psutil.Process]:
    return [child for child in ME.children() if str(KEEPER) in child.cmdline()]


def family() -> list[psutil.Process]:
    return [one for keeper in keepers() for one in (keeper, *keeper.children(recursive=True))]


class Seen:
    """What a launcher told, and a way to wait for more of it."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.lines: list[str] = []
        self._news = asyncio.Event()

    def change(self, engine: LocalEngine) -> None:
        self.states.append(engine.state)
        self._news.set()

    def progress(self, name: str, line: str) -> None:
        self.lines.append(line)
        self._news.set()

    async def until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            self._news.clear()
            await self._news.wait()


@pytest.fixture
def seen() -> Seen:
    return Seen()


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
async def launched(script: str, tmp_path: Path, seen: Seen, **engine: float) -> AsyncIterator[LocalLauncher]:
    settings = Engine(**{"port_start": 23_100, **engine})  # type: ignore[arg-type]
    launcher = LocalLauncher(
        settings,
        tmp_path,
        on_change=seen.change,
        on_progress=seen.progress,
        build=scripts.running(script),
        first_pause_s=0.01,
        grace_s=0.5,
    )
    async with asyncio.timeout(TOO_LONG_S), launcher:
        yield launcher


async def test_engines_start_answer_and_stop(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.HEALTHY, tmp_path, seen, replicas=2) as launcher:
        await launcher.started()
        assert [engine.name for engine in launcher.engines] == ["engine-0", "engine-1"]
        assert len({engine.base_url for engine in launcher.engines}) == 2
    assert seen.states[-2:] == [State.STOPPED, State.STOPPED]
    assert seen.lines == ["loading", "loading"]
    assert (tmp_path / "logs" / "engine-0.log").read_text() == "loading\n"


async def test_an_engine_that_refuses_to_start_is_told_with_its_own_words(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.REFUSES, tmp_path, seen) as launcher:
        with pytest.raises(EngineDidNotStart, match=r"engine-0 did not start: exit code 3\.") as caught:
            await launcher.started()
    assert caught.value.tail == ["no such model: nowhere/at-all"]
    assert seen.states == [State.STARTING, State.FAILED]


async def test_a_command_that_does_not_exist_is_told(tmp_path: Path, seen: Seen) -> None:
    launcher = LocalLauncher(Engine(), tmp_path, build=lambda *_: (["/no/such/engine"], {}))
    async with launcher:
        with pytest.raises(EngineDidNotStart) as caught:
            await launcher.started()
    assert caught.value.tail == ["/no/such/engine cannot be started: No such file or directory"]


async def test_a_start_has_a_time_limit(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.NEVER_READY, tmp_path, seen, start_timeout_s=0.5) as launcher:
        with pytest.raises(EngineDidNotStart, match=r"not ready after 0\.5 s \(ENGINE_START_TIMEOUT\)"):
            await launcher.started()


async def test_a_crash_is_followed_by_a_new_start(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.HEALTHY, tmp_path, seen) as launcher:
        await launcher.started()
        keepers()[0].children()[0].kill()
        await seen.until(lambda: seen.states.count(State.READY) == 2)
        assert seen.states == [State.STARTING, State.READY, State.DIED, State.STARTING, State.READY]
        assert launcher.engines[0].starts == 2


async def test_one_that_dies_again_and_again_is_given_up(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.DIES_ONCE_READY, tmp_path, seen) as launcher:
        await seen.until(lambda: State.FAILED in seen.states)
        assert launcher.engines[0].starts == 6
        assert launcher.engines[0].reason == "engine-0 ended by itself: exit code 9."
        with pytest.raises(EngineLost):
            await launcher.started()


async def test_an_engine_that_ignores_sigterm_is_killed(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.STUBBORN, tmp_path, seen) as launcher:
        await launcher.started()


async def test_what_an_engine_started_ends_with_it(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.HAS_CHILDREN, tmp_path, seen) as launcher:
        await launcher.started()
        assert len(family()) == 4  # keeper, engine, and its two
    assert not any(psutil.pid_exists(int(pid)) for pid in seen.lines[0].split()[1:])


async def test_what_an_engine_started_ends_with_it_when_it_crashes(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.HAS_CHILDREN, tmp_path, seen) as launcher:
        await launcher.started()
        keepers()[0].children()[0].kill()
        await seen.until(lambda: State.DIED in seen.states)
        assert not any(psutil.pid_exists(int(pid)) for pid in seen.lines[0].split()[1:])


async def test_a_killed_keeper_takes_its_engine_along(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.STUBBORN, tmp_path, seen) as launcher:
        await launcher.started()
        keepers()[0].kill()
        await seen.until(lambda: seen.states.count(State.READY) == 2)


async def test_an_engine_that_talks_much_is_not_held_up(tmp_path: Path, seen: Seen) -> None:
    async with launched(scripts.CHATTERS, tmp_path, seen) as launcher:
        await launcher.started()
    assert len(seen.lines) == 60_000
    logs = {file.name: file.stat().st_size for file in (tmp_path / "logs").iterdir()}
    assert logs.keys() == {"engine-0.log", "engine-0.log.1"}
    assert sum(logs.values()) == 60_000 * 200 + 1
    assert max(logs.values()) <= 10 * 2**20


@pytest.mark.parametrize("when_s", [0.0, 0.05, 0.3])
async def test_being_cancelled_while_starting_leaves_nothing(tmp_path: Path, seen: Seen, when_s: float) -> None:
    async def start() -> None:
        async with launched(scripts.NEVER_READY, tmp_path, seen, replicas=2) as launcher:
            await launcher.started()

    starting = asyncio.wait_for(start(), timeout=when_s)
    with pytest.raises(TimeoutError):
        await starting


async def test_being_cancelled_twice_waits_for_no_grace(tmp_path: Path, seen: Seen) -> None:
    build = scripts.running(scripts.STUBBORN)

    async def run() -> None:
        launcher = LocalLauncher(Engine(), tmp_path, on_change=seen.change, build=build, grace_s=60)
        async with launcher:
            await launcher.started()
            await asyncio.Event().wait()

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run())
        await seen.until(lambda: State.READY in seen.states)
        running.cancel()
        await asyncio.sleep(0.2)
        running.cancel()
        await asyncio.wait([running])


async def test_a_taken_port_is_skipped_and_told(tmp_path: Path, seen: Seen) -> None:
    blocker = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 23_400)
    async with blocker, launched(scripts.HEALTHY, tmp_path, seen, port_start=23_400) as launcher:
        await launcher.started()
        assert launcher.engines[0].base_url == "http://127.0.0.1:23401"
    assert seen.lines[0] == "Port 23400 is taken; trying the next."


async def test_two_launchers_choose_different_ports(tmp_path: Path, seen: Seen) -> None:
    async with (
        launched(scripts.HEALTHY, tmp_path / "a", seen) as one,
        launched(scripts.HEALTHY, tmp_path / "b", seen) as two,
    ):
        assert one.engines[0].base_url != two.engines[0].base_url
        await one.started()
        await two.started()


GATEWAY = """
import asyncio, sys
from pathlib import Path
from app.cluster.launchers.local import LocalLauncher
from app.settings import Engine
from tests.cluster.launchers import scripts
async def main():
    async with LocalLauncher(Engine(port_start=23_500, replicas=2), Path(sys.argv[1]),
                             build=scripts.running(scripts.HAS_CHILDREN), grace_s=0.5) as launcher:
        await launcher.started()
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_killed_gateway_leaves_no_orphan(tmp_path: Path) -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GATEWAY, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert gateway.stdout
    assert await gateway.stdout.readline() == b"ready\n"
    family = psutil.Process(gateway.pid).children(recursive=True)
    assert len(family) == 8
    os.kill(gateway.pid, signal.SIGKILL)
    await gateway.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 10)
    assert [process.cmdline() for process in alive] == []
    gateway._transport.close()  # type: ignore[attr-defined]  # the one way to close its pipe
