"""A Ray cluster on loopback, whose nodes come and go at a word: a process of its own, under our keeper.

    python -m tests.ray.nodes ORDERS

prints the head's address, then obeys what it reads from the pipe ORDERS: `add ADDRESS GPUS`, `remove ADDRESS` (in good
order), `kill ADDRESS`. Each node has an address and GPUs of its own, so that a mistake about either shows. Whatever Ray
leaves behind, the keeper does not.
"""

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from app.cluster.launchers.process import kept

TOO_LONG_S = 60
HEAD = "127.0.0.1"
SMALL = {"num_cpus": 4, "object_store_memory": 100 * 2**20, "include_dashboard": False}
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""A dead node is noticed within seconds instead of most of a minute."""

LOOPBACK_ONLY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's way to say: this machine's own address is 127.0.0.1
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
}


class Nodes:
    """The cluster as a test sees it."""

    def __init__(self, answers: IO[str], orders: IO[str], noise: Path) -> None:
        self._answers = answers
        self._orders = orders
        self._noise = noise
        self.address = self._answer()

    def add(self, address: str, gpus: str) -> None:
        self._do(f"add {address} {gpus}")

    def remove(self, address: str) -> None:
        self._do(f"remove {address}")

    def kill(self, address: str) -> None:
        self._do(f"kill {address}")

    def _do(self, order: str) -> None:
        print(order, file=self._orders, flush=True)
        self._answer()

    def _answer(self) -> str:
        readable, _, _ = select.select([self._answers], [], [], TOO_LONG_S)
        said = self._answers.readline().strip() if readable else ""
        assert said, f"Ray does not do it\n{self._noise.read_text()[-4_000:]}"
        return said


@contextmanager
def nodes() -> Iterator[Nodes]:
    """In a folder with a short name: Ray's sockets lie in there, and the paths of sockets must be short."""
    with tempfile.TemporaryDirectory(prefix="ray") as name:
        folder = Path(name)
        orders, noise = folder / "orders", folder / "noise"
        os.mkfifo(orders)
        with (
            noise.open("w") as errors,
            os.fdopen(os.open(orders, os.O_RDWR), "w") as writer,  # which waits for no reader
            subprocess.Popen(
                kept([sys.executable, "-m", "tests.ray.nodes", str(orders)], grace_s=10),
                env=os.environ | LOOPBACK_ONLY | {"RAY_TMPDIR": name},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            ) as process,  # leaving closes its input, and waits
        ):
            assert process.stdout
            yield Nodes(process.stdout, writer, noise)


@contextmanager
def node(cluster: Nodes, address: str, gpus: str) -> Iterator[None]:
    """Where a test may have killed it already."""
    cluster.add(address, gpus)
    try:
        yield
    finally:
        cluster.remove(address)


def obey(orders: IO[str]) -> None:
    from ray.cluster_utils import Cluster

    folder = Path(os.environ["RAY_TMPDIR"]) / "ray"
    folder.mkdir()  # Ray writes the address into it before it makes it
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**SMALL, "node_ip_address": HEAD, "temp_dir": str(folder), "_system_config": QUICK},
    )
    there: dict[str, Any] = {}
    print(cluster.address, flush=True)
    try:
        for order in orders:
            match order.split():
                case "add", address, gpus:
                    there[address] = cluster.add_node(
                        node_ip_address=address,
                        num_gpus=len(gpus.split(",")),
                        env_vars={"CUDA_VISIBLE_DEVICES": gpus},
                        **SMALL,
                    )
                case "remove" | "kill" as how, address if address in there:
                    cluster.remove_node(there.pop(address), allow_graceful=how == "remove")
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    with open(sys.argv[1]) as orders:
        obey(orders)
