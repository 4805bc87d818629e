"""Workers for all replicas of an engine, in one process."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from app.cluster.control import Order, WorkerState
from app.cluster.worker.crew import crew
from app.settings import Engine
from tests.cluster.worker.conftest import Bench, family, settled
from tests.support.ports import free_port
from tests.support.processes import ROOT

GATEWAY = """
import asyncio, sys
from pathlib import Path
from app.cluster.control import Order
from app.cluster.worker.crew import crew
from app.settings import Engine
from tests.cluster.worker.conftest import Bench, settled
async def main():
    bench = Bench(Path(sys.argv[1]))
    engine = Engine(type="vllm", replicas=2, port_start=24_700)
    async with crew(engine, bench.folder, on_progress=lambda *_: None, heartbeat_s=0.1, build=bench.build) as workers:
        for worker in workers:
            await worker.load(Order(model="well"), drain_s=0)
            await settled(worker)
        print("ready", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_each_has_a_name_a_port_and_a_log_and_all_end_at_once(bench: Bench) -> None:
    first = free_port()
    engine = Engine(type="vllm", replicas=3, gpus=("0", "1", "2"), port_start=first)
    told: list[str] = []
    async with crew(
        engine, bench.folder, on_progress=lambda name, line: told.append(name), heartbeat_s=0.1, build=bench.build
    ) as workers:
        for worker in workers:
            await worker.load(Order(model="stubborn"), drain_s=0)
        ready = [await settled(worker) for worker in workers]
        assert [status.state for status in ready] == [WorkerState.READY] * 3
        assert [status.engine_url for status in ready] == [f"http://127.0.0.1:{first + n}" for n in range(3)]
        assert [status.gpus for status in ready] == [("0",), ("1",), ("2",)]
        began = time.monotonic()
    assert time.monotonic() - began < 2 * 6.0, "each takes its grace, all of them the same one"
    assert set(told) == {"engine-0", "engine-1", "engine-2"}
    assert {each.name for each in (bench.folder / "logs").iterdir()} == {f"engine-{n}.log" for n in range(3)}


async def test_two_gateways_on_one_machine_choose_different_ports(bench: Bench, tmp_path: Path) -> None:
    engine = Engine(type="vllm", port_start=24_600)
    made = [
        crew(engine, tmp_path / each, on_progress=lambda *_: None, heartbeat_s=0.1, build=bench.build) for each in "ab"
    ]
    async with made[0] as (one,), made[1] as (two,):
        for worker in (one, two):
            await worker.load(Order(model="well"), drain_s=0)
        assert (await settled(one)).engine_url != (await settled(two)).engine_url


@pytest.mark.parametrize("when_s", [0.0, 0.05, 0.3])
async def test_being_cancelled_while_they_load_leaves_nothing(bench: Bench, when_s: float) -> None:
    async def start() -> None:
        engine = Engine(type="vllm", replicas=2, port_start=24_650)
        async with crew(
            engine, bench.folder, on_progress=lambda *_: None, heartbeat_s=0.1, build=bench.build
        ) as workers:
            for worker in workers:
                await worker.load(Order(model="slow"), drain_s=0)
            await asyncio.Event().wait()

    starting = asyncio.wait_for(start(), timeout=when_s)
    with pytest.raises(TimeoutError):
        await starting
    assert family() == []


async def test_a_killed_gateway_leaves_no_orphan(tmp_path: Path) -> None:
    gateway = await asyncio.create_subprocess_exec(
        sys.executable, "-c", GATEWAY, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert gateway.stdout
    assert await asyncio.wait_for(gateway.stdout.readline(), 30) == b"ready\n"
    engines = psutil.Process(gateway.pid).children(recursive=True)
    assert len(engines) == 4  # two keepers, two engines
    os.kill(gateway.pid, signal.SIGKILL)
    await gateway.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, engines, 10)
    assert [process.cmdline() for process in alive] == []
