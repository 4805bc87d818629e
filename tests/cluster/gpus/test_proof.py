"""'Released' is said when the memory is back, and not before."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.control import Released
from app.cluster.gpus.inventory import Gpu, Inventory, Memory
from app.cluster.gpus.lease import Hold, Lease
from app.cluster.gpus.proof import LIMIT_S, SLACK, Proof, not_back
from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.process import EngineProcess
from app.errors import NotReleased
from tests.support.nvml import GIB, IDLE, TOTAL, FakeGpus
from tests.support.processes import ROOT, comes_true


class Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.then: dict[int, object] = {}
        self.naps = 0

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.naps += 1
        if (act := self.then.pop(self.naps, None)) is not None:
            act()  # type: ignore[operator]


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def lease() -> Iterator[Lease]:
    with Lease.take([Hold(f"gpu:test-{uuid.uuid4()}", "GPU 0")]) as lease:
        yield lease


@contextmanager
def somebody(**env: str) -> Iterator[int]:
    argv = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    with subprocess.Popen(argv, env={**os.environ, **env}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def proof(lease: Lease) -> Proof:
    inventory = Inventory.here()
    return Proof(inventory, inventory.gpus[:1], lease)


async def released(made: Proof, time: Time) -> Released:
    return await made.released(clock=time.clock, sleep=time.sleep)


async def test_it_waits_until_the_driver_has_cleaned_up(gpus: FakeGpus, lease: Lease, time: Time) -> None:
    made = proof(lease)
    gpus.occupy(0, pid=2**22 + 1, lingers=True)
    time.then[7] = lambda: gpus.vacate(0, 2**22 + 1)
    assert await released(made, time) == Released(proved=True)
    assert time.naps == 7


async def test_memory_that_does_not_come_back_is_told_with_the_amount(gpus: FakeGpus, lease: Lease, time: Time) -> None:
    made = proof(lease)
    gpus.occupy(0, pid=2**22 + 1, bytes_=3 * GIB, lingers=True)
    with pytest.raises(
        NotReleased, match=r"After 30 s 3\.0 GiB of GPU 0 are not back with process 4194305 \(3\.0 GiB\)\."
    ):
        await released(made, time)
    assert LIMIT_S <= time.now < LIMIT_S + 1


async def test_a_process_of_ours_that_lives_on_is_named(gpus: FakeGpus, lease: Lease, time: Time) -> None:
    made = proof(lease)
    with somebody(**lease.marker) as pid:
        gpus.occupy(0, pid, bytes_=1)
        with pytest.raises(NotReleased, match=rf"not back with process {pid} \(0\.0 GiB\)"):
            await released(made, time)


async def test_what_others_have_taken_meanwhile_is_not_ours_to_give(gpus: FakeGpus, lease: Lease, time: Time) -> None:
    with somebody() as before, somebody() as since:
        gpus.occupy(0, before)
        made = proof(lease)
        gpus.occupy(0, since)
        assert await released(made, time) == Released(proved=True)
    assert time.naps == 0


async def test_a_driver_that_does_not_tell_proves_nothing_and_keeps_nobody_waiting(
    gpus: FakeGpus, lease: Lease, time: Time
) -> None:
    gpus.are([{"uuid": uuid, "total": TOTAL, "used": IDLE, "silent": True} for uuid in gpus.uuids])
    assert await released(proof(lease), time) == Released(
        proved=False, note="The driver does not tell what is on its GPUs."
    )


async def test_a_worker_without_a_gpu_has_nothing_to_prove(lease: Lease, time: Time) -> None:
    assert (await Proof(Inventory((), lacking="none"), (), lease).released()).proved


ENGINE = """
import time
from tests.support.nvml import load_model
load_model(3 * 2**30, lingers_s=1.0)
print("loaded", flush=True)
time.sleep(60)
"""


async def test_released_is_said_only_when_a_real_engine_and_its_memory_are_gone(
    gpus: FakeGpus, lease: Lease, tmp_path: Path
) -> None:
    made = proof(lease)
    log = tmp_path / "engine.log"
    async with await EngineProcess.start(
        [sys.executable, "-c", ENGINE],
        {**os.environ, **gpus.env, **lease.marker, "CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": str(ROOT)},
        log=LogFile(log),
        told=lambda line: None,
        grace_s=1.0,
        held=lease.descriptors,
    ):
        assert await asyncio.to_thread(comes_true, lambda: "loaded" in log.read_text(), 10)
    with pytest.raises(NotReleased, match=r"3\.0 GiB of GPU 0 are not back with process \d+ \(3\.0 GiB\)"):
        await made.released(limit_s=0)
    assert await made.released() == Released(proved=True)


# --- with values ------------------------------------------------------------------------------------------------------

GPU = Gpu("GPU-a", 0)
OTHER, NEW_OTHER, OURS = 1, 2, 3
AMOUNT = st.integers(0, 80 * GIB)


def left(before: Memory, now: Memory) -> str:
    return not_back(GPU, before, now, lambda pid: pid in (OTHER, NEW_OTHER))


@given(idle=AMOUNT, was=AMOUNT, grown=AMOUNT, new=AMOUNT)
def test_whatever_others_do_it_is_back_when_ours_is(idle: int, was: int, grown: int, new: int) -> None:
    assert not left(
        Memory(idle + was, {OTHER: was}), Memory(idle + SLACK + grown + new, {OTHER: grown, NEW_OTHER: new})
    )
    assert not left(Memory(idle + was, {OTHER: was}), Memory(idle, {}))


@given(idle=AMOUNT, was=AMOUNT, grown=AMOUNT, new=AMOUNT, ours=st.integers(SLACK + 1, 80 * GIB))
def test_whatever_others_do_what_is_kept_of_ours_is_seen(idle: int, was: int, grown: int, new: int, ours: int) -> None:
    """Listed under a process, which may have ended, or under nobody's name any more."""
    now, listed = idle + grown + new + ours, {OTHER: grown, NEW_OTHER: new}
    said = f"{ours / GIB:.1f} GiB of GPU 0 are not back"
    before = Memory(idle + was, {OTHER: was})
    assert left(before, Memory(now, listed)) == said
    assert left(before, Memory(now, {**listed, OURS: ours})) == f"{said} with process 3 ({ours / GIB:.1f} GiB)"


def test_what_somebody_gave_back_meanwhile_hides_nothing() -> None:
    before, now = Memory(IDLE + 39 * GIB, {OTHER: 39 * GIB}), Memory(IDLE + 30 * GIB, {})
    assert left(before, now) == "30.0 GiB of GPU 0 are not back"
