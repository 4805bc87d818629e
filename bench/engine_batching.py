"""How much continuous batching gives: tokens a second of the Transformers engine at 1, 8 and 32 streams.

    python bench/engine_batching.py [--model models/demo] [--tokens 200] [--threads N]

Starts the engine itself, on a free port of this machine, and stops it again. The client is a bare socket reader in this
process, so that it takes as little as it can of the processors it shares with the engine.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

ROUNDS = 3
WORDS = "queue token batch stream page cache retry limit key replica lease slot commit point drain swap".split()


@dataclass(frozen=True)
class Measured:
    streams: int
    tokens_per_s: float
    first_token_ms: float
    between_ms: float
    cpu_ms_per_token: float


async def one_stream(port: int, prompt: str, tokens: int) -> tuple[int, list[float]]:
    """Read one streamed chat: how many tokens came, and when anything did."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    arrived: list[float] = []
    last = b""
    try:
        writer.write(head.encode() + body)
        while data := await reader.read(65536):
            arrived.append(time.perf_counter())
            last = last[-1024:] + data
    finally:
        writer.close()
    counted = re.search(rb'"completion_tokens":([0-9]+)', last)
    return int(counted[1]) if counted else 0, arrived[1:]  # the first are the headers


async def measure(port: int, process: psutil.Process, streams: int, tokens: int) -> Measured:
    rates, firsts, gaps, cpu = [], [], [], []
    for turn in range(ROUNDS):
        before = sum(process.cpu_times()[:2])
        begun = time.perf_counter()
        prompts = [f"{turn} {index} " + " ".join(WORDS[index % 7 :]) for index in range(streams)]
        arrivals = await asyncio.gather(*(one_stream(port, prompt, tokens) for prompt in prompts))
        lasted = time.perf_counter() - begun
        total = sum(count for count, _ in arrivals)
        assert total == streams * tokens, f"{total} tokens came, {streams * tokens} were asked for"
        rates.append(total / lasted)
        firsts += [times[0] - begun for _, times in arrivals]
        gaps += [(times[-1] - times[0]) / (tokens - 1) for _, times in arrivals]
        cpu.append((sum(process.cpu_times()[:2]) - before) / total)
    return Measured(
        streams,
        max(rates),
        statistics.median(firsts) * 1000,
        statistics.median(gaps) * 1000,
        min(cpu) * 1000,
    )


@contextmanager
def engine(model: str, threads: int | None, extra: Sequence[str]) -> Iterator[tuple[int, psutil.Process, str]]:
    """A running engine: its port, its process, and what it said when it was ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app.engines.transformers", "--model", model, "--port", str(port), *extra]
    environment = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        said = next((line.strip() for line in process.stdout if "ready" in line), None)
        if said is None:
            raise SystemExit("The engine did not start.")
        yield port, psutil.Process(process.pid), said
    finally:
        process.terminate()
        process.wait(20)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--tokens", type=int, default=200, help="tokens a stream")
    parser.add_argument("--threads", type=int, help="threads of the engine's arithmetic (default: as it chooses)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    args, extra = parser.parse_known_args(argv)
    with engine(args.model, args.threads, extra) as (port, process, said):
        print(said)
        asyncio.run(measure(port, process, 2, 20))  # warm
        found = [asyncio.run(measure(port, process, streams, args.tokens)) for streams in args.streams]
    print(table(found))
    return 0


def table(found: Sequence[Measured]) -> str:
    rows: list[Sequence[Any]] = [("streams", "tokens/s", "of one", "first token ms", "between ms", "CPU ms/token")]
    for each in found:
        gain = each.tokens_per_s / found[0].tokens_per_s
        rows.append(
            (
                each.streams,
                f"{each.tokens_per_s:.0f}",
                f"{gain:.1f}x",
                f"{each.first_token_ms:.0f}",
                f"{each.between_ms:.1f}",
                f"{each.cpu_ms_per_token:.2f}",
            )
        )
    return "\n".join("  ".join(str(cell).rjust(14) for cell in row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
