"""What each layer of a Python HTTP stack costs a gateway: CPU per request and per streamed event.

    python -m bench.http_stack [--slices 6] [--json FILE]

Every variant relays the same requests to the same engine, a socket that answers with canned bytes. All variants run at
once and take turns in slices of a second, so that a slow spell of the machine hits all alike; what counts is the ratio.
CPU is the variant's own, from /proc: neither the engine nor the load generator is in it. The variants but the last are
skeletons, with no limits, timeouts, retries, checks or metrics; `gllm` has what it has.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import cpu_s
from bench.ports import free_port, wait_for_port

MESSAGE = {"role": "user", "content": "x" * 1_500}
WHOLE = json.dumps({"model": "demo", "messages": [MESSAGE], "max_tokens": 64}).encode()
STREAMED = json.dumps({"model": "demo", "messages": [MESSAGE], "stream": True}).encode()

CONNECTIONS = 32
STREAMS = 100

REFERENCE = "pure ASGI, own client"
VARIANTS = {
    REFERENCE: ("asgi", "own", "httptools"),
    "server parses with h11": ("asgi", "own", "h11"),
    "FastAPI route": ("fastapi", "own", "httptools"),
    "client is httpx": ("asgi", "httpx", "httptools"),
    "FastAPI route, client is httpx": ("fastapi", "httpx", "httptools"),
    "gllm": ("gllm", "own", "httptools"),
}


@dataclass
class Variant:
    name: str
    port: int
    pid: int
    request_us: list[float] = field(default_factory=list)
    event_us: list[float] = field(default_factory=list)


def head(body: bytes) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


async def requests(port: int, seconds: float) -> int:
    """A closed loop on kept connections; how many answers came."""
    until = time.perf_counter() + seconds
    request = head(WHOLE)
    done = 0

    async def one() -> None:
        nonlocal done
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            assert answer.startswith(b"HTTP/1.1 200"), answer
            done += 1
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONNECTIONS):
            tasks.create_task(one())
    return done


async def streams(port: int) -> int:
    """Paced streams, all at once; how many events came."""
    events = 0

    async def one() -> None:
        nonlocal events
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(STREAMED))
        seen = b""
        while b"[DONE]" not in seen[-200:]:
            part = await reader.read(65_536)
            assert part, seen
            seen += part
        events += seen.count(b"data: ")
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(STREAMS):
            tasks.create_task(one())
    return events


async def measure(variants: list[Variant], slices: int) -> None:
    for variant in variants:
        await requests(variant.port, 0.5)
    for _ in range(slices):
        for variant in variants:
            before = cpu_s(variant.pid)
            done = await requests(variant.port, 1.0)
            variant.request_us.append((cpu_s(variant.pid) - before) / done * 1e6)
    for _ in range(max(2, slices // 2)):
        for variant in variants:
            before = cpu_s(variant.pid)
            done = await streams(variant.port)
            variant.event_us.append((cpu_s(variant.pid) - before) / done * 1e6)


@contextmanager
def started(module: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", module, *args], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def all_started() -> Iterator[list[Variant]]:
    with ExitStack() as stack:
        engine = free_port()
        stack.enter_context(started("bench.canned_engine", str(engine)))
        wait_for_port(engine)
        variants = []
        for name, (app, client, parser) in VARIANTS.items():
            port = free_port()
            process = stack.enter_context(started("bench.skeletons", app, client, parser, str(port), str(engine)))
            variants.append(Variant(name, port, process.pid))
        for variant in variants:
            wait_for_port(variant.port)
        time.sleep(1)
        yield variants


def table(variants: list[Variant]) -> list[dict[str, str | float]]:
    reference = next(variant for variant in variants if variant.name == REFERENCE)

    def ratio(mine: list[float], theirs: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(mine, theirs, strict=True))

    return [
        {
            "variant": variant.name,
            "us_per_request": round(statistics.median(variant.request_us), 1),
            "requests_ratio": round(ratio(variant.request_us, reference.request_us), 2),
            "us_per_event": round(statistics.median(variant.event_us), 1),
            "events_ratio": round(ratio(variant.event_us, reference.event_us), 2),
        }
        for variant in variants
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=6)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with all_started() as variants:
        asyncio.run(measure(variants, args.slices))
        rows = table(variants)
    print(f"{platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}\n")
    print("| variant | CPU µs/request | ratio | CPU µs/event, paced | ratio |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row.values()) + " |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
