"""What clients get through the gateway, beside what they get from the engine itself: a real engine, asked in turns.

    python -m bench through --engine vllm --model MODEL [--clients 1 16 64 256] [--tokens 128] [--rounds 3]

Starts `gllm serve` with one engine of that kind, as an operator does, and stops it again. Half of the time its clients
go to the gateway, half of it to the engine's own port. Everything is streamed, and every answer has the same length.
The clients are processes of their own, so that they do not wait for each other. On a machine with few cores they take
from what they measure, on both ways alike.
"""

import argparse
import asyncio
import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter

import msgspec
import uvloop

from bench import machine
from bench.client import End, Exchange, Pool, Seen
from bench.figures import Row, percentile, table
from bench.ports import free_port
from bench.processes import Processes

DIRECT, THROUGH = "engine itself", "through gllm"
LONGEST_S = 120.0
ANSWERS = 3
"""On each connection, one after the other."""
PROMPT = "queue token batch stream page cache retry limit key replica lease slot commit point drain swap " * 4


@dataclass(frozen=True)
class Round:
    way: str
    clients: int
    tokens_per_s: float
    first_token_s: list[float]
    gaps_s: list[float]
    failed: int
    gateway_cpu_s: float


def requests(port: int, model: str, tokens: int, seed: int) -> list[bytes]:
    """All different, so that no engine answers from what it has cached."""
    return [_request(port, model, tokens, f"{seed}-{number} {PROMPT}") for number in range(ANSWERS)]


def _request(port: int, model: str, tokens: int, prompt: str) -> bytes:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    written = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(written)}\r\n\r\n".encode() + written


async def _client(pool: Pool, requests: Sequence[bytes]) -> list[Seen]:
    seen = []
    for request in requests:
        ended: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        exchange = Exchange(request, Seen(perf_counter()), ended.set_result)
        pool.ask(exchange)
        try:
            seen.append(await asyncio.wait_for(asyncio.shield(ended), LONGEST_S))
        except TimeoutError:
            exchange.give_up()
            seen.append(exchange.seen)
    return seen


def clients(port: int, model: str, tokens: int, seeds: Sequence[int]) -> list[Seen]:
    """Some of the clients, in a process of their own."""

    async def all_of_them() -> list[Seen]:
        pool = Pool(port)
        await pool.prepare(len(seeds))
        asked = [_client(pool, requests(port, model, tokens, seed)) for seed in seeds]
        seen = await asyncio.gather(*asked)
        await pool.aclose()
        return [each for several in seen for each in several]

    return uvloop.run(all_of_them())


@dataclass(frozen=True)
class Site:
    ports: dict[str, int]
    model: str
    tokens: int
    gateway_pid: int

    def round(self, way: str, number: int, workers: ProcessPoolExecutor, processes: int, seed: int) -> Round:
        shares = [range(seed + first, seed + number, processes) for first in range(min(processes, number))]
        cpu, began = machine.cpu_s(self.gateway_pid), perf_counter()
        parts = [workers.submit(clients, self.ports[way], self.model, self.tokens, share) for share in shares]
        seen = [each for part in parts for each in part.result()]
        took = perf_counter() - began
        well = [each for each in seen if each.end is End.DONE]
        return Round(
            way,
            number,
            len(well) * self.tokens / took,
            sorted(each.first_token_s for each in well if each.first_token_s is not None),
            sorted(gap for each in well for gap in each.gaps_s),
            len(seen) - len(well),
            machine.cpu_s(self.gateway_pid) - cpu,
        )


def rows(rounds: Sequence[Round], tokens: int) -> list[Row]:
    """A row for each way and number of clients; the ratio is the median of those within a round."""
    found: list[Row] = []
    for number in sorted({each.clients for each in rounds}):
        for way in (DIRECT, THROUGH):
            mine = [each for each in rounds if (each.way, each.clients) == (way, number)]
            beside = [each for each in rounds if (each.way, each.clients) == (DIRECT, number)]
            ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(mine, beside, strict=True) if b.tokens_per_s]
            firsts = sorted(one for each in mine for one in each.first_token_s)
            gaps = sorted(one for each in mine for one in each.gaps_s)
            cpu_s = sum(each.gateway_cpu_s for each in mine) / (len(mine) * number * ANSWERS * tokens)
            found.append(
                {
                    "clients": str(number),
                    "asked": way,
                    "tokens/s": statistics.median(each.tokens_per_s for each in mine),
                    "ratio": f"{statistics.median(ratios):.3f}" if ratios else None,
                    "first token p50 ms": percentile(firsts, 50) * 1e3,
                    "p99 ms": percentile(firsts, 99) * 1e3,
                    "gap p50 ms": f"{percentile(gaps, 50) * 1e3:.2f}",
                    "gap p99 ms": f"{percentile(gaps, 99) * 1e3:.2f}",
                    "gateway µs/token": cpu_s * 1e6 if way is THROUGH else None,
                    "failed": sum(each.failed for each in mine),
                }
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--engine", choices=("transformers", "vllm"), default="transformers")
    add("--model", default=str(machine.ROOT / "models" / "demo"))
    add("--engine-args", default="", help="for the engine, as in ENGINE_ARGS")
    add("--clients", type=int, nargs="+", default=[1, 16, 64])
    add("--tokens", type=int, default=128, help="of each answer")
    add("--rounds", type=int, default=3)
    add("--processes", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)), help="of clients")
    add("--json", type=Path)
    args = parser.parse_args(argv)
    engine_port = free_port()
    settings = {
        "ENGINE_TYPE": args.engine,
        "MODEL_NAME": args.model,
        "ENGINE_PORT_START": str(engine_port),
        "ENGINE_ARGS": args.engine_args,
        "MAX_CONCURRENT_REQUESTS": "1024",
        "QUEUE_CAPACITY": "4096",
    }
    with Processes() as started, ProcessPoolExecutor(args.processes) as workers:
        gateway = started.serving(settings)
        model = gateway.get("/v1/models").json()["data"][0]["id"]
        site = Site({DIRECT: engine_port, THROUGH: gateway.port}, model, args.tokens, gateway.pid)
        seed, rounds = count(step=100_000), list[Round]()
        for way in site.ports:  # compiled, captured and cached, whatever an engine does for the first ones
            site.round(way, max(args.clients), workers, args.processes, next(seed))
        for number in args.clients:
            for _ in range(args.rounds):
                rounds += [site.round(way, number, workers, args.processes, next(seed)) for way in site.ports]
    found = rows(rounds, args.tokens)
    print(table(found))
    if args.json is not None:
        kept = {"machine": machine.facts(), "settings": settings | {"tokens": args.tokens}, "rows": found}
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(kept)))
    if any(each.failed for each in rounds):
        raise SystemExit("some requests failed: the figures are not to be believed")


if __name__ == "__main__":
    main()
