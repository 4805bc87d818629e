"""Real vLLM: two replicas of the demo model behind a gateway that starts, watches and stops them.

Only `make test-vllm` has it; what needs it is marked with `ON_VLLM`.
"""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from packaging.version import Version

from app.cluster.launchers.plan import Machine
from tests.support.collector import Collector, collector
from tests.support.ports import free_port
from tests.support.processes import EngineSite, GatewayProcess, alive, below, comes_true

ON_VLLM = (pytest.mark.vllm, pytest.mark.timeout(120, func_only=True))
"""The first one that runs waits for the start, too, which is not its own time."""

MOST_AT_WORK = 24
"""One more, and a replica answers 503 by its own choice."""

QUEUE_LIMIT = "--max-num-queued-reqs"
"""By which it does so; before 0.29 there was no such limit."""

ARGS = "--enable-auto-tool-choice --tool-call-parser hermes --enable-lora --max-lora-rank 8 --max-loras 2"
SHARED_GPU = "--gpu-memory-utilization 0.3 --enforce-eager"
"""Both replicas may see the same one, of which vLLM takes nearly all; and compiling for it takes minutes."""

START_S, STOP_S = 400.0, 40.0


@cache
def knows(flag: str) -> bool:
    """Whether the `vllm` on the PATH does, by its source: to ask the command takes many seconds."""
    environment = Path(shutil.which("vllm") or "").resolve().parent.parent
    source = next(environment.glob("lib*/python3*/*-packages/vllm/engine/arg_utils.py"))
    return f'"{flag}"' in source.read_text()


def _args() -> str:
    """What each replica is started with."""
    limit = f" {QUEUE_LIMIT} {MOST_AT_WORK}" if knows(QUEUE_LIMIT) else ""
    return ARGS + limit + (f" {SHARED_GPU}" if Machine.here().has_gpu else "")


class VllmFleet:
    """The gateway, and each replica as seen from outside, by the name that the gateway gives it; and who collects what
    all of them tell of traces."""

    def __init__(self, gateway: GatewayProcess, collecting: Collector) -> None:
        self.gateway = gateway
        self.collecting = collecting
        ports = sorted(_port_of(keeper) for keeper in self.keepers())
        self.engines = {f"engine-{number}": EngineSite(port) for number, port in enumerate(ports)}
        self.version = Version(self.engines["engine-0"].http.get("/version").json()["version"])

    def keepers(self) -> list[int]:
        return [pid for pid in self.gateway.children() if b"keeper.py" in _command(pid)]

    def server_of(self, name: str) -> int:
        """The process that `vllm serve` is; what else belongs to the replica is below it."""
        port = self.engines[name].port
        (keeper,) = (pid for pid in self.keepers() if _port_of(pid) == port)
        (server,) = below(keeper) - set().union(*map(below, below(keeper)))
        return server

    def at_work(self) -> int:
        return sum(engine.at_work() for engine in self.engines.values())

    def all_ready(self) -> bool:
        return are_ready(self.gateway) == len(self.engines)

    def circuits_open(self) -> float:
        return self.gateway.sum_of("gllm_circuit_open")

    def close(self) -> None:
        for engine in self.engines.values():
            engine.http.close()


def are_ready(gateway: GatewayProcess) -> int:
    return int(gateway.sum_of("gllm_replica_ready"))


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""


def _port_of(keeper: int) -> int:
    words = _command(keeper).split(b"\0")
    return int(words[words.index(b"--port") + 1])


@contextmanager
def vllm_fleet(folder: Path) -> Iterator[VllmFleet]:
    """Both replicas are ready within the block, and nothing of them is left behind it. Their traces are kept."""
    with collector() as collecting, _vllm_fleet(folder, collecting) as fleet:
        yield fleet


@contextmanager
def _vllm_fleet(folder: Path, collecting: Collector) -> Iterator[VllmFleet]:
    assert shutil.which("vllm"), "there is no `vllm` on the PATH: run these tests with `make test-vllm`"
    gateway = GatewayProcess(
        "vllm",
        free_port(),
        folder,
        ENGINE_TYPE="vllm",
        ENGINE_REPLICAS="2",
        ENGINE_PORT_START=str(free_port()),
        ENGINE_ARGS=_args(),
        PROBE_INTERVAL="0.5",
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="True",
        OTEL_EXPORTER_OTLP_ENDPOINT=collecting.url,
        OTEL_BSP_SCHEDULE_DELAY="200",
    )
    family: set[int] = set()
    try:
        gateway.await_ready("/readyz", START_S)
        assert comes_true(lambda: are_ready(gateway) == 2, START_S, every_s=0.5), gateway.tail()
        fleet = VllmFleet(gateway, collecting)
        yield fleet
        fleet.close()
        family = gateway.children()
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(STOP_S) == 0, gateway.tail()
        assert not any(map(alive, family))
    finally:
        gateway.end()
        assert comes_true(lambda: not any(map(alive, family)), 15)
