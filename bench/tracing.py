"""What traces cost: the gateway's CPU per request and per streamed event, the engine's tokens a second, and its start.

    python -m bench tracing [--slices 6]

Gateways that keep nothing, one request in a hundred, and all of them take turns in slices of a second before one engine
of canned bytes; so do two Transformers engines with the demo model, of which one tells its part of every request. A
collector takes what they send. What counts is the ratio to the one without.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bench.http_stack import Variant, head, measure
from bench.machine import ROOT, cpu_s, facts
from bench.ports import free_port, wait_for_port

OFF = "off"
GATEWAYS: dict[str, dict[str, str]] = {
    OFF: {"OTEL_SDK_DISABLED": "true"},
    "1 % kept": {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "all kept": {},
}
ENGINES: dict[str, dict[str, str]] = {OFF: {"OTEL_SDK_DISABLED": "true"}, "all told": {}}

TOGETHER, TOKENS = 8, 64
ASKED = {"prompt": "Docker is", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
STARTS = 5


class Sink(BaseHTTPRequestHandler):
    """A collector that takes everything and keeps nothing."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextmanager
def started(words: list[str], port: int, env: Mapping[str, str]) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-m", *words], env={**os.environ, **env}, stdout=subprocess.DEVNULL, cwd=ROOT
    )
    try:
        wait_for_port(port, 120)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def gateways(stack: ExitStack, collector: Mapping[str, str]) -> list[Variant]:
    engine = free_port()
    stack.enter_context(started(["bench.canned_engine", str(engine)], engine, {}))
    variants = []
    for name, otel in GATEWAYS.items():
        port = free_port()
        words = ["bench.skeletons", "gllm", "own", "httptools", str(port), str(engine)]
        variants.append(Variant(name, port, stack.enter_context(started(words, port, {**collector, **otel}))))
    return variants


@dataclass
class Engine:
    name: str
    port: int
    pid: int
    speeds: list[float] = field(default_factory=list)
    """Tokens a second."""
    token_us: list[float] = field(default_factory=list)
    """CPU of each."""


def engines(stack: ExitStack, collector: Mapping[str, str]) -> list[Engine]:
    made = []
    for name, otel in ENGINES.items():
        port = free_port()
        words = ["app.engines.transformers", "--model", str(ROOT / "models" / "demo"), "--port", str(port)]
        env = {**collector, **otel, "OMP_NUM_THREADS": "1"}
        made.append(Engine(name, port, stack.enter_context(started(words, port, env))))
    return made


async def tokens(port: int, seconds: float) -> int:
    """A closed loop of streams; how many tokens came."""
    began = time.perf_counter()
    request = head(json.dumps(ASKED).encode()).replace(b"/v1/chat/completions", b"/v1/completions")
    done = 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < began + seconds:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            await reader.readuntil(b"data: [DONE]")
            writer.close()
            done += TOKENS

    async with asyncio.TaskGroup() as tasks:
        for _ in range(TOGETHER):
            tasks.create_task(one())
    return done


async def measure_engines(made: list[Engine], slices: int) -> None:
    for each in made:
        await tokens(each.port, 1.0)
    for number in range(slices):
        for each in made if number % 2 else reversed(made):
            began, before = time.perf_counter(), cpu_s(each.pid)
            done = await tokens(each.port, 2.0)
            each.speeds.append(done / (time.perf_counter() - began))
            each.token_us.append((cpu_s(each.pid) - before) / done * 1e6)


def import_s() -> float:
    """What a start with traces imports beside what it imports anyhow."""
    code = (
        "import time, fastapi, app.wire.parsing, prometheus_client, asyncio; began = time.process_time()\n"
        "import app.settings, app.telemetry.tracing.spans, app.telemetry.tracing.outbox\n"
        "from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter\n"
        "print(time.process_time() - began)"
    )
    run = [sys.executable, "-c", code]
    return statistics.median(float(subprocess.check_output(run, cwd=ROOT)) for _ in range(STARTS))


def ratio(mine: list[float], without: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, without, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=6)
    slices = parser.parse_args().slices
    sink = free_port()
    collector = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink}"}
    print(", ".join(f"{name}: {value}" for name, value in facts().items()), "\n")
    with started(["bench.tracing", "--sink", str(sink)], sink, {}):
        with ExitStack() as stack:
            variants = gateways(stack, collector)
            asyncio.run(measure(variants, slices))
        with ExitStack() as stack:
            made = engines(stack, collector)
            asyncio.run(measure_engines(made, 2 * slices))
    without = variants[0]
    print("| gateway | CPU µs/request | ratio | CPU µs/event, paced | ratio |\n| --- | --- | --- | --- | --- |")
    for each in variants:
        requests, events = ratio(each.request_us, without.request_us), ratio(each.event_us, without.event_us)
        whole, event = statistics.median(each.request_us), statistics.median(each.event_us)
        print(f"| {each.name} | {whole:.0f} | {requests:.2f} | {event:.1f} | {events:.2f} |")
    print("\n| engine | tokens/s | ratio | CPU µs/token | ratio |\n| --- | --- | --- | --- | --- |")
    for one in made:
        speed, token = ratio(one.speeds, made[0].speeds), ratio(one.token_us, made[0].token_us)
        medians = f"{statistics.median(one.speeds):.0f} | {speed:.3f} | {statistics.median(one.token_us):.0f}"
        print(f"| {one.name} | {medians} | {token:.3f} |")
    print(f"\nImports of a start with traces: {import_s():.2f} s of CPU.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sink"]:
        ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Sink).serve_forever()
    else:
        main()
