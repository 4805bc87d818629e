"""Several gateway processes on one port: what each further one brings.

    python -m bench several [--processes 1 2 4] [--repeats 3] [--seconds 3] [--limits]

`gllm serve --processes N` for each N over one Redis, in turns before the same engine of canned bytes. Nobody has a core
for himself: load generator, engine and Redis want theirs, too, so that on a machine with few cores CPU per request says
more than requests a second. `--limits`: each request asks Redis for its tenant's.
"""

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.cost import tree
from bench.cost.cores import of_this_machine
from bench.cost.engine import engine, free_ports
from bench.cost.gateway import ENDLESS, REPLICAS, ROOM
from bench.cost.load import Load, fire, write_requests
from bench.cost.standing import WORDS
from bench.figures import table
from bench.machine import facts
from bench.open_loop import chat
from bench.ports import wait_for_port
from bench.tenants import Tenant, file_of

CONNECTIONS, TOKENS = 64, 16
READY_S = 60.0
GONE_WITH_US = ("setpriv", "--pdeathsig", "KILL")


@dataclass
class Several:
    processes: int
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    requests_per_s: list[float] = field(default_factory=list)
    us_per_request: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    failed: int = 0

    def measure(self, requests: Path, seconds: float, core: int) -> None:
        before = tree.cpu_s(self.process.pid)
        found = fire(Load(connections=CONNECTIONS, seconds=seconds), self.port, requests, core)
        spent = tree.cpu_s(self.process.pid) - before
        self.requests_per_s.append(found.answered / found.seconds)
        self.us_per_request.append(spent / max(1, found.answered) * 1e6)
        self.cores.append(spent / found.seconds)
        self.failed += found.failed

    def await_answer(self, requests: Path, core: int) -> None:
        until = time.monotonic() + READY_S
        while not fire(Load(each=1, patience=5), self.port, requests, core).answered:
            if time.monotonic() > until or self.process.poll() is not None:
                said = self.log.read_text(errors="replace")[-2_000:]
                raise SystemExit(f"gllm serve --processes {self.processes} does not answer:\n{said}")
            time.sleep(0.2)


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    if shutil.which("redis-server") is None:
        raise SystemExit("There is no redis-server on the PATH.")
    command = [
        *GONE_WITH_US,
        "redis-server",
        "--port",
        str(port),
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(processes: int, urls: Sequence[str], redis_url: str, tenants: str, folder: Path) -> Iterator[Several]:
    folder.mkdir()
    (folder / "tenants.toml").write_text(tenants)
    (port,) = free_ports(1)
    settings = {
        "PORT": str(port),
        "PROCESSES": str(processes),
        "METRICS_PORT": str(_in_a_row(processes)),
        "ENGINE_URLS": ",".join(urls),
        "REDIS_URL": redis_url,
        "TENANTS_FILE": "tenants.toml",
        "MAX_CONCURRENT_REQUESTS": str(ROOM // len(urls)),
        "QUEUE_CAPACITY": str(ROOM),
    }
    with (folder / "log").open("ab") as log:
        command = [*GONE_WITH_US, sys.executable, "-m", "gllm.cli", "serve", "--quiet"]
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=settings)
    try:
        yield Several(processes, port, process, folder / "log")
    finally:
        process.terminate()
        process.wait()


def _in_a_row(count: int) -> int:
    """The first of so many ports that are all free."""
    while True:
        (first,) = free_ports(1)
        with ExitStack() as stack, suppress(OSError, OverflowError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


def report(all_of_them: Sequence[Several]) -> str:
    """Ratios are taken within a repeat, and then their median."""

    def to_first(name: str, each: Several) -> float:
        pairs = zip(getattr(each, name), getattr(all_of_them[0], name), strict=True)
        return float(round(statistics.median(one / other for one, other in pairs), 2))

    return table(
        [
            {
                "processes": each.processes,
                "requests/s": round(statistics.median(each.requests_per_s)),
                "x the first's": to_first("requests_per_s", each),
                "CPU us/request": round(statistics.median(each.us_per_request)),
                "x the first's CPU": to_first("us_per_request", each),
                "cores": round(statistics.median(each.cores), 2),
                "failed": each.failed,
            }
            for each in all_of_them
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--limits", action="store_true")
    args = parser.parse_args()
    print(", ".join(f"{name}: {value}" for name, value in facts().items()), "\n")
    limits = {"requests_per_minute": ENDLESS, "concurrent": ENDLESS} if args.limits else {}
    tenant, core = Tenant("bench", limits=limits), of_this_machine().load
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = stack.enter_context(engine(REPLICAS, of_this_machine().engine)).urls(REPLICAS)
        redis_url = stack.enter_context(redis(folder))
        requests = write_requests(folder / "requests", [chat(WORDS, TOKENS, stream=False, key=tenant.key)])
        gateways = [
            stack.enter_context(serving(count, urls, redis_url, file_of([tenant]), folder / f"of-{count}"))
            for count in args.processes
        ]
        for each in gateways:
            each.await_answer(requests, core)
        for _ in range(args.repeats):
            for each in gateways:
                each.measure(requests, args.seconds, core)
    print(report(gateways))


if __name__ == "__main__":
    main()
