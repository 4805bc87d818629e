"""No GPU twice, whoever dies how."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.gpus.inventory import Gpu
from app.cluster.gpus.lease import Hold, Lease, Taken, taken
from app.cluster.gpus.orphans import end_orphans, held_by, is_anothers, orphans
from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.process import EngineProcess
from tests.support.processes import ROOT, alive, comes_true

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="leases and /proc are Linux'")
pytestmark = LINUX

TAKE = """
import sys, time
from app.cluster.gpus.lease import Hold, Lease
lease = Lease.take([Hold(sys.argv[1], "GPU 0")])
print("taken", flush=True)
time.sleep(60)
"""
TAKE_AND_DIE = """
import os, sys, time
from app.cluster.gpus.lease import Hold, Lease
lease = Lease.take([Hold(sys.argv[1], "GPU 0")])
keeper = os.fork()
if keeper:
    print(keeper, flush=True)
else:
    os.close(1)
    time.sleep(60)
"""
TAKE_AND_STAY = TAKE_AND_DIE.replace("print(keeper, flush=True)", "print(keeper, flush=True), time.sleep(60)")
LEAVES_A_HELPER = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("helper", os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""
WORKER = """
import asyncio, json, os, sys
from pathlib import Path
from app.cluster.gpus.lease import Hold, Lease
from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.process import EngineProcess

async def main():
    lease = Lease.take([Hold(key, "GPU 0") for key in json.loads(sys.argv[1])])
    engine = await EngineProcess.start(
        [sys.executable, "-c", sys.argv[2]], {**os.environ, **lease.marker},
        log=LogFile(Path(sys.argv[3])), told=lambda line: print(engine.pid, line.split()[1], flush=True),
        grace_s=1.0, held=lease.descriptors,
    )
    await engine.wait()

asyncio.run(main())
"""
NAMED = """
import setproctitle, time
setproctitle.setproctitle("VLLM::EngineCore")
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold() -> Hold:
    """Nobody else's: the space is the machine's."""
    return Hold(f"gpu:test-{uuid.uuid4()}", "GPU 0")


@pytest.fixture
def holder(hold: Hold) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", TAKE, hold.key]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_a_second_taker_is_told_who_has_it(hold: Hold, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(Taken) as raised:
        Lease.take([hold])
    assert str(raised.value).startswith(f"GPU 0 is in use by process {holder.pid} (")
    assert (raised.value.holder, raised.value.dying) == (holder.pid, False)


def test_a_holder_that_is_killed_holds_nothing(hold: Hold, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with Lease.take([hold]):
        pass


def test_what_is_given_back_can_be_taken_again(hold: Hold) -> None:
    for _ in range(20):
        with Lease.take([hold]), pytest.raises(Taken):
            Lease.take([hold])


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=12))
def test_each_gpu_has_one_holder_and_who_is_refused_has_nothing(wanted: list[set[int]]) -> None:
    salt = uuid.uuid4().hex
    free, leases = set(range(6)), []
    refusals: list[Taken] = []  # with their frames: else the interpreter would give back what we forget
    for numbers in wanted:
        holds = [Hold(f"gpu:{salt}-{number}", f"GPU {number}") for number in numbers]
        try:
            leases.append(Lease.take(holds))
            assert numbers <= free
            free -= numbers
        except Taken as refused:
            refusals.append(refused)
            assert not numbers <= free
    for number in free:  # those who were refused have kept none of these
        Lease.take([Hold(f"gpu:{salt}-{number}", "")]).close()
    for lease in leases:
        lease.close()


def test_one_gpu_by_two_names_is_one_hold() -> None:
    assert Hold.on_gpu(Gpu("GPU-a", 0)) == Hold.on_gpu(Gpu("GPU-a", 0))
    assert len(Lease.take([Hold("x:1", "")] * 2).descriptors) == 1


async def engine(lease: Lease, tmp_path: Path, script: str = "import time; time.sleep(60)") -> EngineProcess:
    return await EngineProcess.start(
        [sys.executable, "-c", script],
        {**os.environ, **lease.marker},
        log=LogFile(tmp_path / "engine.log"),
        told=lambda line: None,
        grace_s=1.0,
        held=lease.descriptors,
    )


async def test_the_keeper_holds_it_until_nothing_of_the_engine_is_left(hold: Hold, tmp_path: Path) -> None:
    lease = Lease.take([hold])
    process = await engine(lease, tmp_path)
    async with process:
        lease.close()
        with pytest.raises(Taken):
            Lease.take([hold])
    Lease.take([hold]).close()


async def test_the_engine_itself_never_has_the_lease(hold: Hold, tmp_path: Path) -> None:
    lease = Lease.take([hold])
    script = "import os, time; print('has', sorted(os.listdir('/proc/self/fd')), flush=True); time.sleep(60)"
    async with await engine(lease, tmp_path, script):
        log = tmp_path / "engine.log"
        assert await asyncio.to_thread(comes_true, lambda: "]" in log.read_text(), 10)
        assert log.read_text().startswith("has ['0', '1', '2', '3']"), "3 is the listing's own"
    lease.close()


def test_the_worker_that_has_it_is_named(hold: Hold) -> None:
    name = Hold.on_worker(f"w-{uuid.uuid4().hex}")
    with Lease.take([hold, name]), pytest.raises(Taken) as raised:
        Lease.take([hold])
    said = f"GPU 0 is in use by process {os.getpid()} (worker {name.key.removeprefix('worker:')})."
    assert str(raised.value) == said


def test_a_holder_is_known_however_often_it_is_asked_for(hold: Hold) -> None:
    with Lease.take([hold]):
        for _ in range(300):
            with pytest.raises(Taken) as raised:
                Lease.take([hold])
            assert (raised.value.holder, raised.value.dying) == (os.getpid(), False)


def test_a_holder_that_can_no_longer_be_asked_is_not_taken_for_dead() -> None:
    key = f"gpu:test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(f"\0gllm-{key}")
        busy.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(f"\0gllm-{key}")
            with pytest.raises(Taken, match="GPU 0 is in use by a process that cannot be told") as raised:
                Lease.take([Hold(key, "GPU 0")])
    assert (raised.value.holder, raised.value.dying) == (None, False)


def test_a_long_name_is_leased_as_any_other() -> None:
    first, second = (Hold.on_worker(f"{uuid.uuid4()}{'w' * 120}{end}") for end in "ab")
    with Lease.take([first]), Lease.take([second]), pytest.raises(Taken) as raised:
        Lease.take([first])
    assert raised.value.holder == os.getpid()


async def test_a_living_holder_is_no_reason_to_wait(hold: Hold, holder: subprocess.Popen[str]) -> None:
    naps = 0

    async def sleep(seconds: float) -> None:
        nonlocal naps
        naps += 1

    with pytest.raises(Taken):
        await taken([hold], sleep=sleep)
    assert naps == 0
    holder.kill()
    holder.wait()
    (await taken([hold], sleep=sleep)).close()


@pytest.fixture
def orphaned_keeper(hold: Hold) -> Iterator[int]:
    """Its worker, who took the lease, is dead."""
    argv = [sys.executable, "-c", TAKE_AND_DIE, hold.key]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        keeper = int(process.stdout.readline())
        process.wait()
    yield keeper
    if alive(keeper):
        os.kill(keeper, signal.SIGKILL)


async def test_a_dead_takers_keeper_is_waited_for_within_a_limit(hold: Hold, orphaned_keeper: int) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now > 5:
            os.kill(orphaned_keeper, signal.SIGKILL)
            await asyncio.sleep(0.05)

    with pytest.raises(Taken, match="whose engine has not yet"):
        await taken([hold], dying_s=3, clock=lambda: now, sleep=sleep)
    (await taken([hold], dying_s=20, clock=lambda: now, sleep=sleep)).close()
    assert 5 < now < 20


def test_a_dead_taker_that_nobody_has_buried_is_dead(hold: Hold) -> None:
    argv = [sys.executable, "-c", TAKE_AND_STAY, hold.key]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        keeper = int(process.stdout.readline())
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        try:
            with pytest.raises(Taken) as raised:
                Lease.take([hold])
        finally:
            os.kill(keeper, signal.SIGKILL)
    assert raised.value.dying


# --- orphans ----------------------------------------------------------------------------------------------------------


async def test_what_a_killed_worker_and_its_killed_keeper_leave_is_found_and_ended(hold: Hold, tmp_path: Path) -> None:
    lease = Lease.take([hold])
    process = await engine(lease, tmp_path, LEAVES_A_HELPER)
    log = tmp_path / "engine.log"
    assert await asyncio.to_thread(comes_true, lambda: "helper" in log.read_text(), 10)
    helper = int(log.read_text().split()[1])
    os.kill(process.pid, signal.SIGKILL)  # the engine dies with its keeper, what the engine has started does not
    lease.close()
    assert await asyncio.to_thread(comes_true, lambda: len(orphans({hold.key})) == 1, 5)
    assert alive(helper)
    with Lease.take([hold]) as anew:
        assert [each.pid for each in await end_orphans(anew)] == [helper]
        assert not alive(helper)
        assert await end_orphans(anew) == ()
    await process.stop()


@pytest.fixture
def helper_of_killed(hold: Hold, tmp_path: Path) -> int:
    """Lives on: its worker and that one's keeper were killed at once."""
    argv = [sys.executable, "-c", WORKER, json.dumps([hold.key, name_for(hold)]), LEAVES_A_HELPER]
    with subprocess.Popen([*argv, str(tmp_path / "engine.log")], stdout=subprocess.PIPE, text=True, cwd=ROOT) as worker:
        assert worker.stdout is not None
        keeper, helper = map(int, worker.stdout.readline().split())
        os.kill(keeper, signal.SIGSTOP)  # else it might end its engine between the two kills
        worker.kill()
        worker.wait()
        with pytest.raises(Taken, match="a worker that has ended, whose engine has not yet"):
            Lease.take([hold])
        os.kill(keeper, signal.SIGKILL)
    assert alive(helper)
    return helper


def name_for(hold: Hold) -> str:
    return f"worker:my worker of {hold.key}"


@pytest.mark.parametrize("by_name", [True, False], ids=["by its name, which has spaces", "by its GPU"])
async def test_worker_and_keeper_killed_at_once_leave_nothing_to_the_next_start(
    hold: Hold, helper_of_killed: int, by_name: bool
) -> None:
    with await taken([Hold(name_for(hold), "") if by_name else hold]) as anew:
        assert helper_of_killed in [each.pid for each in await end_orphans(anew)]
    assert not alive(helper_of_killed)


def test_an_engine_that_names_its_processes_is_told_to_leave_the_marker_alone(hold: Hold) -> None:
    """By the real package, where it is installed: vLLM brings it."""
    with Lease.take([hold]) as lease:
        assert lease.marker["SPT_NOENV"]
        pytest.importorskip("setproctitle")
        argv = [sys.executable, "-c", NAMED]
        with subprocess.Popen(argv, env={**os.environ, **lease.marker}, stdout=subprocess.PIPE) as engine:
            assert engine.stdout is not None
            engine.stdout.readline()
            assert held_by(engine.pid) == {hold.key}
            engine.kill()


def test_of_a_process_that_has_ended_nobody_says_that_it_is_anothers(hold: Hold) -> None:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_anothers(process.pid, {hold.key})
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_anothers(process.pid, {hold.key}), "a zombie"
    assert not is_anothers(process.pid, {hold.key}), "gone"


def test_a_process_without_any_environment_looks_like_one_that_is_just_ending(hold: Hold) -> None:
    """Older kernels show one that ends so, while the driver still takes down what it had."""
    argv = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not is_anothers(process.pid, {hold.key})
        process.kill()


async def test_others_are_left_alone(hold: Hold, tmp_path: Path) -> None:
    other = Hold(hold.key + "-other", "GPU 1")
    with Lease.take([hold]) as lease, Lease.take([other]) as others:
        async with await engine(others, tmp_path) as process:
            assert await end_orphans(lease) == ()
            assert alive(process.pid)
            # While it is being made it has none.
            assert await asyncio.to_thread(comes_true, lambda: bool(held_by(process.pid)), 5)
            assert list(held_by(process.pid)) == [other.key]
