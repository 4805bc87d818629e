"""All that an operator watches, on loopback: a gateway with tenants, Redis and a collector, two workers with real
engines (each on a GPU that is not there), and a real Prometheus that looks at them."""

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.collector import Collector, collector
from tests.support.nvml import FAKE, FakeGpus
from tests.support.ports import free_port
from tests.support.processes import ROOT, EngineSite, GatewayProcess, Server, clean_environment, comes_true
from tests.support.prometheus import Prometheus, prometheus
from tests.support.redis_server import RedisServer, redis_server
from tests.support.tenancy import ADMIN, signed, write_tenants

SECRET = "of-these-tests"
WORKER = (sys.executable, "-c", "import sys; from gllm.cli import main; sys.exit(main())", "worker")
MODEL = "demo"
TENANTS: Mapping[str, Mapping[str, int]] = {
    "chat": {"weight": 4},
    "research": {"weight": 2},
    "nightly": {},
    "trial": {"requests_per_minute": 6, "tokens_per_minute": 100_000},
    "frugal": {"tokens_per_minute": 120},
    "single": {"concurrent": 1},
}
"""The last three meet one of their limits each."""

SETTINGS = {
    "ENGINE_TYPE": "workers",
    "CLUSTER_SECRET": SECRET,
    "HEARTBEAT_INTERVAL": "0.3",
    "WORKER_LEASE": "3",
    "SWAP_DRAIN_SECONDS": "10",
    "MAX_CONCURRENT_REQUESTS": "4",
    "QUEUE_CAPACITY": "12",
    "FIRST_BYTE_TIMEOUT": "3",
    "IDLE_TIMEOUT": "3",
    "WRITE_TIMEOUT": "2",
    "CIRCUIT_FAILURES": "2",
    "CIRCUIT_PAUSE": "2",
    "HEDGE_SHARE": "0.2",
    "PROBE_INTERVAL": "0.5",
}
"""Small and quick, so that a minute shows what else takes a day."""

START_S = 180.0
"""Two engines that import torch, on a machine that others use too."""


class Worker(Server):
    """With a real engine, whose own page Prometheus reads."""

    def __init__(self, name: str, folder: Path, gateway: str, gpu: str, gpus: FakeGpus, env: Mapping[str, str]) -> None:
        folder.mkdir()
        self.engine_port = free_port()
        port = free_port()
        argv = [*WORKER, "--name", name, "--port", str(port), "--engine", "transformers", "--gpus", gpu]
        argv += ["--engine-port", str(self.engine_port), "--gateway", gateway]
        fake = gpus.env | {"PYTHONPATH": f"{FAKE}:{ROOT}"}
        settings = {"CLUSTER_SECRET": SECRET, "HEARTBEAT_INTERVAL": "0.3", "WORKER_LEASE": "3", "LOG_FORMAT": "text"}
        # It loads quickly, so that its absence fits into a minute, and waits for little.
        settings["ENGINE_ARGS"] = shlex.join(["--max-num-seqs", "8"])
        super().__init__(name, argv, port, folder / "said", clean_environment(**settings, **fake, **env), folder)
        self.engine = EngineSite(self.engine_port)

    def engine_process(self) -> psutil.Process | None:
        """What has the model; the keeper above it is not meant."""
        family = psutil.Process(self.pid).children(recursive=True)
        found = [each for each in family if "app.engines.transformers" in each.cmdline() and not each.children()]
        return found[0] if found else None

    def end(self) -> None:
        self.engine.http.close()
        super().end()


class Stack:
    def __init__(
        self,
        folder: Path,
        gateway: GatewayProcess,
        workers: list[Worker],
        redis: RedisServer,
        collecting: Collector,
        prometheus: Prometheus,
    ) -> None:
        self.folder = folder
        self.gateway = gateway
        self.workers = workers
        self.redis = redis
        self.collector = collecting
        self.prometheus = prometheus

    def asked(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """By an operator."""
        return self.gateway.http.request(method, path, json=body, headers=signed(ADMIN), timeout=START_S)

    def states(self) -> dict[str, str]:
        rows = self.asked("GET", "/admin/workers").json()["workers"]
        return {row["name"]: row["state"] if row.get("reachable", True) else "lost" for row in rows}

    def all_known(self) -> bool:
        assert all(each.running for each in self.workers), self.tails()
        return len(self.states()) == len(self.workers)

    def all_ready(self, limit_s: float = START_S) -> bool:
        return bool(comes_true(lambda: set(self.states().values()) == {"ready"}, limit_s, every_s=0.2))

    def reload(self, *, wait: bool = True) -> httpx.Response:
        """The model is put in place of itself, one worker after the other, under traffic."""
        order = {"model": str(ROOT / "models" / "demo"), "names": [MODEL], "force": True, "wait": wait}
        return self.asked("POST", "/admin/models", order)

    def tails(self) -> str:
        return "\n".join(each.tail() for each in (self.gateway, *self.workers, self.prometheus))


@contextmanager
def stack(folder: Path, names: Sequence[str] = (), **settings: str) -> Iterator[Stack]:
    """Ready: both workers serve the model, and every target is scraped. A machine has one worker of a name."""
    with ExitStack() as put:
        redis = put.enter_context(redis_server(folder))
        collecting = put.enter_context(collector())
        write_tenants(folder / "tenants.toml", TENANTS)
        metrics_port = free_port()
        given = SETTINGS | {
            "REDIS_URL": redis.url,
            "TENANTS_FILE": str(folder / "tenants.toml"),
            "METRICS_PORT": str(metrics_port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collecting.url,
            "OTEL_BSP_SCHEDULE_DELAY": "500",
        }
        gateway = GatewayProcess("gateway", free_port(), folder, **given | settings)
        put.callback(gateway.end)
        gateway.await_ready("/livez")
        gpus = FakeGpus(folder / "nvml")
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collecting.url}
        workers = []
        for number, name in enumerate(names or [f"worker-{number}-{metrics_port}" for number in range(2)]):
            worker = Worker(name, folder / name, gateway.url, str(number), gpus, traced)
            put.callback(worker.end)
            workers.append(worker)
        engines = {f"127.0.0.1:{each.engine_port}": each.name for each in workers}
        jobs = {"gateway": {f"127.0.0.1:{metrics_port}": "gateway"}, "engine": engines}
        looking = put.enter_context(prometheus(folder / "prometheus", jobs))
        made = Stack(folder, gateway, workers, redis, collecting, looking)
        assert comes_true(made.all_known, START_S), made.tails()
        answer = made.reload()
        assert answer.status_code == 200, f"{answer.text}\n{made.tails()}"
        assert made.all_ready(), made.tails()
        up = comes_true(lambda: set(looking.scraped().values()) == {"up"}, 30)
        assert up, f"{looking.scraped()}\n{made.tails()}"
        yield made
