"""Open-loop load: every request has its time beforehand, and is timed from it, sent or not.

A server that slows down gets no fewer requests for it, and no slow answer keeps the next request from being sent and
timed: that is what hides the tail in a closed loop ("coordinated omission").

One process is enough for some thousand requests a second: bodies are made before the start, garbage is not collected
while it lasts, and only what counts is read. That it was enough is measured, not believed: the time between a request's
moment and its sending is the generator's own lateness. Arrivals are random, so they find its loop as busy as any event
of an answer does; a lateness of 2 ms at p99 says that about so much may stand in any other figure too.
"""

import asyncio
import gc
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from bench.client import Exchange, Pool, Seen
from bench.figures import percentile

LATE_S = 0.005
"""More than this at p99, and the generator was part of what it measured."""

START_IN_S = 0.05


@dataclass(frozen=True)
class HangUp:
    after_s: float
    reset: bool
    """Gone without a goodbye: RST instead of FIN."""


@dataclass(slots=True)
class Shot:
    """A request, its time after the start, and what came of it."""

    at: float
    request: bytes
    kind: str = ""
    """For whom, or as what, it is counted."""
    hang_up: HangUp | None = None
    keeps_body: bool = False
    seen: Seen = field(default_factory=lambda: Seen(0.0))


def poisson(dice: random.Random, per_second: float, seconds: float) -> Iterator[float]:
    """Arrival times of many who do not know of each other."""
    at = dice.expovariate(per_second)
    while at < seconds:
        yield at
        at += dice.expovariate(per_second)


def chat(
    words: int, tokens: int, *, stream: bool, user: str = "", key: str | None = None, headers: Sequence[str] = ()
) -> bytes:
    """A request as it stands on the wire."""
    body: dict[str, Any] = {
        "model": "bench",
        "messages": [{"role": "user", "content": " ".join(["word"] * words)}],
        "max_tokens": tokens,
        "stream": stream,
    }
    if user:
        body["user"] = user
    payload = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json", *headers]
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    return "\r\n".join([*lines, f"content-length: {len(payload)}", "", ""]).encode() + payload


@dataclass(frozen=True)
class Lateness:
    """Of the generator itself."""

    p50_s: float
    p99_s: float
    most_s: float

    def is_too_much(self, limit_s: float = LATE_S) -> bool:
        return self.p99_s > limit_s


def lateness(shots: Sequence[Shot]) -> Lateness:
    late = sorted(shot.seen.late_s for shot in shots)
    return Lateness(percentile(late, 50), percentile(late, 99), late[-1])


async def fire(port: int, shots: Sequence[Shot], *, patience_s: float, connections: int = 0) -> Lateness:
    """Send each at its time. Ends when all have ended, or `patience_s` after the last was sent."""
    pool = Pool(port)
    try:
        await pool.prepare(connections)
        with _undisturbed():
            await _Salvo(pool, sorted(shots, key=lambda shot: shot.at)).run(patience_s)
    finally:
        await pool.aclose()
    return lateness(shots)


class _Salvo:
    def __init__(self, pool: Pool, shots: Sequence[Shot]) -> None:
        self._pool = pool
        self._shots = shots
        self._left = len(shots)
        self._all_ended = asyncio.Event()
        self._exchanges: list[Exchange] = []

    async def run(self, patience_s: float) -> None:
        start = perf_counter() + START_IN_S
        for shot in self._shots:
            shot.seen.began = start + shot.at
            if (early_s := shot.seen.began - perf_counter()) > 0:
                await asyncio.sleep(early_s)
            self._send(shot)
        try:
            await asyncio.wait_for(self._all_ended.wait(), patience_s)
        except TimeoutError:
            for exchange in self._exchanges:
                exchange.give_up()

    def _send(self, shot: Shot) -> None:
        exchange = Exchange(shot.request, shot.seen, self._ended, keeps_body=shot.keeps_body)
        self._exchanges.append(exchange)
        shot.seen.late_s = max(0.0, shot.seen.since())  # timers have whole milliseconds
        self._pool.ask(exchange)
        if shot.hang_up is not None:
            loop, how = asyncio.get_running_loop(), shot.hang_up
            loop.call_later(how.after_s, lambda: exchange.hang_up(reset=how.reset))

    def _ended(self, seen: Seen) -> None:
        self._left -= 1
        if self._left == 0:
            self._all_ended.set()


@contextmanager
def _undisturbed() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
