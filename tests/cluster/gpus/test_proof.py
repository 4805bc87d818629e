"""'Released' is said when the memory is back, and not before."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from app.cluster.control import Released
from app.cluster.gpus.inventory import Inventory
from app.cluster.gpus.lease import Hold, Lease
from app.cluster.gpus.proof import LIMIT_S, Proof
from app.errors import NotReleased
from tests.support.nvml import GIB, IDLE, TOTAL, FakeGpus


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
    with pytest.raises(NotReleased, match=r"After 30 s 3\.0 GiB of GPU 0 are not back\."):
        await released(made, time)
    assert LIMIT_S <= time.now < LIMIT_S + 1


async def test_a_process_of_ours_that_lives_on_is_named(gpus: FakeGpus, lease: Lease, time: Time) -> None:
    made = proof(lease)
    with somebody(**lease.marker) as pid:
        gpus.occupy(0, pid, bytes_=1)
        with pytest.raises(NotReleased, match=f"not back with process {pid}"):
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
