"""A worker and its GPUs: leased, shown to its engine alone, and seen to be free again."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.cluster.control import Released, WorkerState
from app.cluster.worker import supervisor as module
from app.cluster.worker.grip import NoGrip, gripped, name_of
from app.errors import NotReleased
from tests.cluster.worker.conftest import QUICK, Bench, engine_process, keepers, loaded, until
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
    sys.modules.pop("pynvml", None)


async def test_an_engine_sees_the_gpus_of_its_worker_and_no_secret(
    bench: Bench, gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLUSTER_SECRET", "s")
    async with bench.worker(gpus=(gpus.uuids[1],)) as worker:
        await loaded(worker, "well-seen")
        assert worker.now.gpus == ("1",)
        assert "sees 1 None" in bench.lines


async def test_a_gpu_has_one_worker(bench: Bench, gpus: FakeGpus) -> None:
    async with bench.worker(gpus=("0",)):
        other = Bench(bench.folder / "other")
        with pytest.raises(ExceptionGroup) as caught:
            async with other.worker(gpus=("0",)):
                pass
        (refused,) = caught.value.exceptions
        assert isinstance(refused, NoGrip)
        assert str(refused).startswith("GPU 0 is in use by process ")
        async with other.worker(gpus=("1",), port_start=24_300):
            pass


async def test_what_outlives_a_killed_keeper_is_ended_before_the_next_engine(bench: Bench, gpus: FakeGpus) -> None:
    async with bench.worker(replace(QUICK, hung_s=30), gpus=("0",)) as worker:
        await loaded(worker, "well-helper")
        (helper,) = (int(line.split()[1]) for line in bench.lines if line.startswith("helper "))
        (keeper,) = keepers()
        keeper.kill()
        await until(worker, lambda status: status.starts == 2 and status.state is WorkerState.READY)
        assert any(line.startswith(f"Ended process {helper} ") for line in bench.lines)


async def test_a_gpu_that_is_not_there_is_told(bench: Bench, gpus: FakeGpus) -> None:
    with pytest.raises(NoGrip, match=r"There is no GPU 7 here; there are 0 to 1\."):
        async with gripped(("7",), (), lambda line: None):
            pass


async def test_a_name_is_one_workers_within_a_folder(tmp_path: Path) -> None:
    async with gripped((), (name_of("w", tmp_path),), lambda line: None):
        with pytest.raises(NoGrip, match="The name w is in use by process"):
            async with gripped((), (name_of("w", tmp_path),), lambda line: None):
                pass
        async with gripped((), (name_of("w", tmp_path / "other"),), lambda line: None):
            pass


async def test_a_release_proves_that_the_memory_is_back(bench: Bench, gpus: FakeGpus) -> None:
    async with bench.worker(gpus=("0",)) as worker:
        await loaded(worker, "well")
        gpus.occupy(0, engine_process().pid)
        assert await worker.release(drain_s=0) == Released(proved=True)


async def test_memory_that_does_not_come_back_is_told(
    bench: Bench, gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LIMIT_S", 0.3)
    async with bench.worker(gpus=("0",)) as worker:
        await loaded(worker, "well")
        gpus.are([{"uuid": uuid, "total": 80 * 2**30, "used": 30 * 2**30} for uuid in gpus.uuids])
        with pytest.raises(NotReleased, match=r"GiB of GPU 0 are not back"):
            await worker.release(drain_s=0)
        assert worker.now.state is WorkerState.FAILED


async def test_the_next_engine_starts_when_the_memory_of_the_last_is_back(bench: Bench, gpus: FakeGpus) -> None:
    async with bench.worker(replace(QUICK), gpus=("0",)) as worker:
        await loaded(worker, "well")
        with gpus.occupied(0, engine_process().pid):
            loading = asyncio.ensure_future(loaded(worker, "other"))
            await asyncio.sleep(1.0)
            assert worker.now.starts == 1
        assert (await loading).starts == 2


async def test_without_a_driver_it_is_said_that_nobody_saw(bench: Bench) -> None:
    async with bench.worker(gpus=("0",)) as worker:
        await loaded(worker, "well")
        released = await worker.release(drain_s=0)
        assert (released.proved, released.note[:22]) == (False, "NVML cannot be asked h")
