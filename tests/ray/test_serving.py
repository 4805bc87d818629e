"""The real thing: a gateway, workers on two nodes, an engine in each, and a node that dies."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.cluster.launchers.ray.launcher import RayLauncher
from app.cluster.launchers.ray.words import Wanted
from tests.ray.nodes import Nodes, node
from tests.support.ports import free_port
from tests.support.processes import ROOT, GatewayProcess

pytestmark = pytest.mark.timeout(400)  # three nodes and three engines start

A, B = "127.0.0.5", "127.0.0.6"
SECRET = "known to workers and gateways"
BEARER = {"authorization": f"Bearer {SECRET}"}
TOO_LONG_S = 150.0
"""An engine imports torch: seconds on an idle machine, a minute on a busy one."""

Rows = dict[str, dict[str, Any]]


class Serving(GatewayProcess):
    def workers(self) -> Rows:
        answer = self.http.get("/admin/workers", headers=BEARER).raise_for_status()
        return {row["name"]: row for row in answer.json()["workers"]}

    async def until(self, state: str, *nodes: str) -> Rows:
        """Workers in this state are on these nodes, and nowhere else."""
        async with asyncio.timeout(TOO_LONG_S):
            while True:
                rows = await asyncio.to_thread(self.workers)
                there = {
                    name: row for name, row in rows.items() if row.get("reachable", True) and row["state"] == state
                }
                if sorted(node_of(row) for row in there.values()) == sorted(nodes):
                    return there
                await asyncio.sleep(0.2)

    def load(self, model: Path) -> None:
        body = {"model_path": str(model), "wait": True}
        answer = self.http.post("/load_model", json=body, headers=BEARER, timeout=TOO_LONG_S)
        assert answer.status_code == 200, answer.text

    @contextmanager
    def asked_all_the_time(self) -> Iterator[Counter[int]]:
        """Statuses of short requests, one after the other."""
        statuses: Counter[int] = Counter()
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                body = {"prompt": "Docker is", "max_tokens": 2}
                statuses[self.http.post("/v1/completions", json=body).status_code] += 1
                over.wait(0.02)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            yield statuses
        finally:
            over.set()
            asking.join()


def node_of(row: dict[str, Any]) -> str:
    return str(row["address"]).removeprefix("http://").partition(":")[0]


@contextmanager
def gateway(folder: Path) -> Iterator[Serving]:
    settings = {"ENGINE_TYPE": "workers", "CLUSTER_SECRET": SECRET, "WORKER_LEASE": "2", "HEARTBEAT_INTERVAL": "0.5"}
    process = Serving("gateway", free_port(), folder, **settings)
    try:
        process.await_ready("/livez")
        yield process
    finally:
        process.end()


async def test_requests_are_answered_all_the_time_while_a_node_dies_and_its_worker_moves(
    cluster: Nodes, tmp_path: Path
) -> None:
    with node(cluster, A, "4"), node(cluster, B, "5,6"), gateway(tmp_path) as serving:
        settings = {
            "CLUSTER_SECRET": SECRET,
            "GATEWAY_URLS": serving.url,
            "HEARTBEAT_INTERVAL": "0.5",
            "ENGINE_TYPE": "transformers",
            "ENGINE_PORT_START": "23500",
            "OMP_NUM_THREADS": "1",
            "STATE_DIR": str(tmp_path),
        }
        wanted = Wanted(address=cluster.address, workers=2, env=settings)
        async with RayLauncher(wanted, tmp_path):
            await serving.until("empty", A, B)
            await asyncio.to_thread(serving.load, ROOT / "models" / "demo")
            before = await serving.until("ready", A, B)
            with serving.asked_all_the_time() as statuses:
                killed_at = time.monotonic()
                await asyncio.to_thread(cluster.kill, A)
                after = await serving.until("ready", B, B)
                print(f"back after {time.monotonic() - killed_at:.1f} s; meanwhile {statuses}")
            left_at = time.monotonic()
        print(f"left after {time.monotonic() - left_at:.1f} s")
        assert time.monotonic() - left_at < 10
        assert statuses.total() > 50
        assert statuses.keys() == {200}
        await serving.until("ready")
    moved = next(name for name, row in before.items() if node_of(row) == A)
    stayed = next(name for name in before if name != moved)
    assert before[stayed]["life"] == after[stayed]["life"]
    assert before[moved]["life"] != after[moved]["life"]
