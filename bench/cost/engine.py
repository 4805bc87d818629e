"""The engine of `native/engine.c`, in a process: any number of replicas, each on a port of its own."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.request import ProxyHandler, build_opener

import msgspec

from bench.cost.build import built
from bench.cost.cores import pinned
from bench.ports import wait_for_port

MODEL = "bench"
HOUR_US = 3_600_000_000
"""Between two tokens of a stream that is idle."""


class Counts(msgspec.Struct, frozen=True):
    requests: int
    tokens: int
    connections: int
    streams: int


@dataclass(frozen=True)
class Engine:
    ports: list[int]
    pid: int

    def urls(self, replicas: int) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports[:replicas]]

    def pace(self, interval_us: int) -> None:
        """Between two tokens of a stream, from now on. 0: as fast as they are read."""
        self._get(f"/set?interval_us={interval_us}")

    def counts(self) -> Counts:
        return msgspec.json.decode(self._get("/counts"), type=Counts)

    def _get(self, path: str) -> bytes:
        with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{self.ports[0]}{path}", timeout=10) as answer:
            said: bytes = answer.read()
            return said


@contextmanager
def engine(replicas: int, core: int) -> Iterator[Engine]:
    ports = free_ports(replicas)
    process = subprocess.Popen(pinned(core, str(built("engine")), *map(str, ports)))
    try:
        wait_for_port(ports[-1])
        yield Engine(ports, process.pid)
    finally:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """All of them held until the last is found, so that no two are the same."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
