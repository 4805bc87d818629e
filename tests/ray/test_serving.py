"""The real thing: a gateway, workers on two nodes, an engine in each; and a node that dies."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from app.cluster.control import Status, WorkerState
from app.cluster.launchers.ray.launcher import RayLauncher
from app.cluster.launchers.ray.seat import PORT
from app.cluster.launchers.ray.words import Wanted
from tests.ray.nodes import Nodes, node
from tests.support.processes import ROOT, GatewayProcess, free_port

pytestmark = pytest.mark.timeout(240)  # three nodes and three engines start

A, B = "127.0.0.5", "127.0.0.6"
SECRET = "known to workers and gateways"
ENGINE_PORT = 23_500
PORTS = range(4)
TOO_LONG_S = 80.0


async def workers() -> dict[str, Status]:
    """Those that answer on our nodes, by name."""
    found = {}
    async with httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {SECRET}"}) as http:
        for url in [f"http://{address}:{int(PORT) + step}" for address in (A, B) for step in PORTS]:
            try:
                status = msgspec.json.decode((await http.get(f"{url}/status")).content, type=Status)
            except httpx.HTTPError:
                continue
            found[status.name] = status
    return found


async def until_ready(names: set[str], on: set[str]) -> dict[str, Status]:
    async with asyncio.timeout(TOO_LONG_S):
        while True:
            ready = {name: each for name, each in (await workers()).items() if each.state is WorkerState.READY}
            if ready.keys() == names and {hosted(each) for each in ready.values()} == on:
                return ready
            await asyncio.sleep(0.2)


def hosted(status: Status) -> str:
    return httpx.URL(status.engine_url or "").host


@contextmanager
def asked_all_the_time(gateway: GatewayProcess) -> Iterator[Counter[int]]:
    """Statuses of short requests, one after the other."""
    statuses: Counter[int] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            body = {"prompt": "Docker is", "max_tokens": 2}
            statuses[gateway.http.post("/v1/completions", json=body).status_code] += 1
            over.wait(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield statuses
    finally:
        over.set()
        asking.join()


@contextmanager
def gateway(folder: Path) -> Iterator[GatewayProcess]:
    engines = [f"http://{address}:{ENGINE_PORT + step}" for address in (A, B) for step in PORTS]
    process = GatewayProcess("gateway", free_port(), folder, ENGINE_URLS=",".join(engines))
    try:
        process.await_ready("/livez")
        yield process
    finally:
        process.end()


async def test_requests_are_answered_all_the_time_while_a_node_dies_and_its_worker_moves(
    cluster: Nodes, tmp_path: Path
) -> None:
    model = tmp_path / "tiny"
    model.symlink_to(ROOT / "models" / "demo")  # the demo model by its own name is what a worker has that has none
    settings = {
        "CLUSTER_SECRET": SECRET,
        "ENGINE_TYPE": "transformers",
        "ENGINE_PORT_START": str(ENGINE_PORT),
        "MODEL_NAME": str(model),
        "OMP_NUM_THREADS": "1",
        "STATE_DIR": str(tmp_path),
    }
    wanted = Wanted(address=cluster.address, workers=2, env=settings)
    with node(cluster, A, 1), node(cluster, B, 2), gateway(tmp_path) as serving:
        async with RayLauncher(wanted, tmp_path):
            before = await until_ready({"ray-0", "ray-1"}, {A, B})
            with asked_all_the_time(serving) as statuses:
                killed_at = time.monotonic()
                await asyncio.to_thread(cluster.kill, A)
                after = await until_ready({"ray-0", "ray-1"}, {B})
                print(f"back after {time.monotonic() - killed_at:.1f} s; meanwhile {statuses}")
        assert statuses.total() > 50
        assert statuses.keys() == {200}
        assert await workers() == {}
    moved = next(name for name, status in before.items() if hosted(status) == A)
    stayed = next(name for name in before if name != moved)
    assert before[stayed].life == after[stayed].life
    assert before[moved].life != after[moved].life
