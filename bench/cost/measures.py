"""What is measured of whatever stands between the load and the engine. Each gives figures by name, with their units."""

import os
import time
from dataclasses import dataclass

from bench.cost import tree
from bench.cost.cores import Cores
from bench.cost.engine import HOUR_US, Engine
from bench.cost.lengths import Lengths
from bench.cost.load import Found, Load, Spread, fire, held
from bench.cost.standing import Standing

Figures = dict[str, float]

WHOLE_TOKENS = 16
STREAM_TOKENS = 200
IDLE_TOKENS = 10
LONG_WORDS = 40_000
"""A prompt of 200 KB."""

QUIET = 0.1
"""Cores: below that, streams that were left have been cleared away."""

LOOK_S, LOOKS = 0.5, 40


@dataclass(frozen=True)
class Bench:
    """Where it is measured."""

    engine: Engine
    cores: Cores
    lengths: Lengths


@dataclass(frozen=True)
class Spent:
    """While the load lasted."""

    found: Found
    cpu_s: float
    """By the gateway and all that came out of it."""
    engine_s: float
    strangers_s: float

    def us_per(self, count: int) -> float:
        return self.cpu_s / max(1, count) * 1e6

    def loads(self) -> Figures:
        """In cores; who is at 1 was the limit."""
        seconds = self.found.seconds
        return {
            "gateway_cores": self.cpu_s / seconds,
            "load_and_engine_cores": (self.found.cpu_s + self.engine_s) / seconds,
            "strangers_cores": max(0.0, self.strangers_s) / seconds,
        }


def spend(bench: Bench, standing: Standing, load: Load, words: int = 200) -> Spent:
    tokens = load.tokens or WHOLE_TOKENS
    requests = standing.requests(tokens, stream=load.tokens > 0, words=words)
    before, engine, busy, own = _used(standing), tree.cpu_s(bench.engine.pid), tree.busy_s(), sum(os.times()[:2])
    found = fire(load, standing.port, requests, bench.cores.load)
    gateway_s, engine_s = _used(standing) - before, tree.cpu_s(bench.engine.pid) - engine
    own_s = sum(os.times()[:2]) - own
    return Spent(found, gateway_s, engine_s, tree.busy_s() - busy - gateway_s - engine_s - found.cpu_s - own_s)


def _used(standing: Standing) -> float:
    return 0.0 if standing.pid is None else tree.cpu_s(standing.pid)


def _ms(spread: Spread, *, of: str) -> Figures:
    return {f"{of}_p50_ms": spread.p50 / 1e3, f"{of}_p99_ms": spread.p99 / 1e3}


def alone(bench: Bench, standing: Standing) -> Figures:
    """One request after another."""
    spent = spend(bench, standing, Load(seconds=bench.lengths.window_s))
    return {**_ms(spent.found.latency_us, of="alone"), "alone_failed": spent.found.failed}


def closed(bench: Bench, standing: Standing) -> Figures:
    lengths = bench.lengths
    spent = spend(bench, standing, Load(connections=lengths.concurrency, seconds=lengths.window_s))
    found = spent.found
    return {
        "requests_per_s": found.answered / found.seconds,
        "us_per_request": spent.us_per(found.answered),
        "closed_p99_ms": found.latency_us.p99 / 1e3,
        "closed_failed": found.failed,
        **spent.loads(),
    }


def streams(bench: Bench, standing: Standing) -> Figures:
    """As fast as they are read."""
    lengths = bench.lengths
    load = Load(connections=lengths.concurrency, seconds=lengths.window_s, tokens=STREAM_TOKENS)
    spent = spend(bench, standing, load)
    found = spent.found
    return {
        "tokens_per_s": found.tokens / found.seconds,
        "us_per_token": spent.us_per(found.tokens),
        "tokens_per_read": found.tokens / max(1, found.reads),
        "streams_failed": found.failed,
    }


def paced(bench: Bench, standing: Standing) -> Figures:
    """Many at once, a token each so often."""
    lengths = bench.lengths
    bench.engine.pace(lengths.interval_us)
    load = Load(
        connections=lengths.streams,
        each=1,
        tokens=lengths.paced_tokens,
        interval_us=lengths.interval_us,
        ramp=lengths.ramp_s,
        seconds=lengths.ramp_s + lengths.paced_tokens * lengths.interval_us / 1e6,
    )
    try:
        spent = spend(bench, standing, load)
    finally:
        bench.engine.pace(0)
        if standing.pid is not None:
            _quiet(standing.pid)
    found = spent.found
    return {
        "paced_us_per_token": spent.us_per(found.tokens),
        "paced_tokens_per_s": found.tokens / found.seconds,
        "paced_gateway_cores": spent.cpu_s / found.seconds,
        **_ms(found.first_token_us, of="first_token"),
        **_ms(found.gap_error_us, of="gap"),
        "paced_failed": found.failed,
    }


def long_prompt(bench: Bench, standing: Standing) -> Figures:
    load = Load(connections=8, seconds=bench.lengths.window_s)
    spent = spend(bench, standing, load, words=LONG_WORDS)
    return {"us_per_long_prompt": spent.us_per(spent.found.answered), "long_prompt_failed": spent.found.failed}


def open_loop(bench: Bench, standing: Standing, part: float, most: float) -> Figures:
    """Arrivals at a part of what it can do at most, each timed from the moment at which it was meant to be sent."""
    load = Load(connections=1_000, seconds=bench.lengths.window_s, rate=part * most)
    found = spend(bench, standing, load).found
    name = f"open_{part * 100:.0f}"
    return {
        **_ms(found.latency_us, of=name),
        f"{name}_late_p99_ms": found.late_us.p99 / 1e3,
        f"{name}_failed": found.failed,
    }


def idle(bench: Bench, standing: Standing, count: int) -> Figures:
    """Streams that have begun, and in which nothing happens. First of all, or they would use what others have left."""
    assert standing.pid is not None
    fire(Load(connections=8, seconds=0.5), standing.port, standing.requests(WHOLE_TOKENS), bench.cores.load)
    before = tree.memory(standing.pid)
    bench.engine.pace(HOUR_US)
    requests = standing.requests(IDLE_TOKENS, stream=True)
    count = min(count, standing.idle_most)
    load = Load(connections=count, tokens=IDLE_TOKENS, seconds=count / 500 + 5, ramp=count / 4_000)
    try:
        with held(load, standing.port, requests, bench.cores.load) as begun:
            grown = tree.memory(standing.pid) - before
    finally:
        bench.engine.pace(0)
        _quiet(standing.pid)
    return {"idle_streams": begun, "idle_kib_each": grown / max(1, begun) / 1024, "resting_mib": before / 1024**2}


def _quiet(pid: int) -> None:
    """Until it has nothing left to do; some take many seconds to notice that a thousand streams were left."""
    for _ in range(LOOKS):
        before = tree.cpu_s(pid)
        time.sleep(LOOK_S)
        if tree.cpu_s(pid) - before < QUIET * LOOK_S:
            return
