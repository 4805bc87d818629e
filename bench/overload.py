"""Goodput over offered load: what is answered in time when too much is asked, and how fast the rest hears no.

    python -m bench overload [--seconds 20] [--seed 7] [--quick] [--json FILE]

Promise: at twice the capacity, the answers that finish within their deadline are at least 90 % of the most there ever
were, and the excess is refused in less than 20 ms at p99, seen by the client. The same load on plain first come, first
served without bound (`ENABLE_BACKPRESSURE=false`) stands beside it: there everybody waits until it is too late.
"""

import random
import sys
from collections import Counter
from collections.abc import Sequence

from bench import scenario
from bench.client import End, Seen
from bench.engine import Shape
from bench.figures import Cell, Row, of
from bench.machine import Meter
from bench.open_loop import Lateness, Shot, chat, fire, poisson
from bench.processes import EngineProcess, GatewayProcess, Processes
from bench.scenario import Options, Report

LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
LOADS_UNBOUNDED = (1.0, 2.0, 3.0)
QUICK_LOADS = (1.0, 2.0)

SHAPE = Shape(sequences=32, step_ms=8, step_ms_per_sequence=0.125, prompt_steps=4)
TOKENS = (8, 24)
"""The shortest and the longest answer; all between are as likely."""
WORDS = 30
DEADLINE_MS = 1_000
WARM_UP = 0.1
"""The part of each run that is not counted."""

GOODPUT_KEPT = 0.9
REFUSED_WITHIN_S = 0.020


async def measure(options: Options) -> Report:
    seconds = options.lasting(20, 3)
    loads, unbounded = (QUICK_LOADS, ()) if options.quick else (LOADS, LOADS_UNBOUNDED)
    settings = {"MAX_CONCURRENT_REQUESTS": str(SHAPE.sequences)}
    capacity = SHAPE.capacity(sum(TOKENS) / 2)
    report = Report(
        {
            "engine": f"{SHAPE}, {capacity:.0f} requests/s when full",
            "requests": f"{TOKENS[0]} to {TOKENS[1]} tokens, half of them streams, deadline {DEADLINE_MS} ms",
            "gateway": settings,
            "load": f"Poisson, {seconds:.0f} s a row, the first {WARM_UP:.0%} not counted",
        }
    )
    bounded = await _rows(loads, capacity, seconds, settings, options.seed, report.lateness)
    fifo = await _rows(unbounded, capacity, seconds, {**settings, "ENABLE_BACKPRESSURE": "false"}, options.seed, [])
    peak = max(_number(row["good/s"]) for row in bounded)
    for row in (*bounded, *fifo):
        row["of peak %"] = _number(row["good/s"]) / peak * 100
    report.tables["Fair, bounded, with early refusals"] = bounded
    if fifo:
        report.tables["First come, first served, without bound"] = fifo
    _judge(report, next(row for row in bounded if row["load"] == "2x"), quick=options.quick)
    return report


def _judge(report: Report, twice: Row, *, quick: bool) -> None:
    share = _number(twice["of peak %"]) / 100
    kept = share >= (0.75 if quick else GOODPUT_KEPT)
    report.promise(f"at 2x, goodput is at least {GOODPUT_KEPT:.0%} of its peak", f"{share:.0%}", kept=kept)
    refused = twice["refused p99 ms"]
    kept = refused is not None and _number(refused) < (250 if quick else REFUSED_WITHIN_S * 1e3)
    found = "none was refused" if refused is None else f"{refused} ms"
    report.promise("at 2x, the excess is refused in < 20 ms at p99", found, kept=kept)


async def _rows(
    loads: Sequence[float],
    capacity: float,
    seconds: float,
    settings: dict[str, str],
    seed: int,
    lateness: list[Lateness],
) -> list[Row]:
    """One after another on the same processes."""
    if not loads:
        return []
    dice = random.Random(seed)
    with Processes() as processes:
        engine = processes.engine(SHAPE)
        gateway = processes.gateway(engine, settings)
        return [await _row(load, capacity, seconds, dice, engine, gateway, lateness) for load in loads]


async def _row(
    load: float,
    capacity: float,
    seconds: float,
    dice: random.Random,
    engine: EngineProcess,
    gateway: GatewayProcess,
    lateness: list[Lateness],
) -> Row:
    shots = [_shot(at, dice) for at in poisson(dice, load * capacity, seconds)]
    meter = Meter((gateway.pid, engine.pid))
    late = await fire(gateway.port, shots, patience_s=DEADLINE_MS / 1e3 + 10, connections=200)
    (ours, gateways, engines), strangers = meter.stop()
    lateness.append(late)
    return {
        "load": f"{load:g}x",
        "offered/s": len(shots) / seconds,
        **_outcomes(shots, seconds),
        "late p99 ms": late.p99_s * 1e3,
        "gateway cores": gateways,
        "other cores": round(ours + engines + strangers, 2),
    }


def _shot(at: float, dice: random.Random) -> Shot:
    deadline = f"x-request-timeout-ms: {DEADLINE_MS}"
    return Shot(at, chat(WORDS, dice.randint(*TOKENS), stream=dice.random() < 0.5, headers=[deadline]))


def _outcomes(shots: Sequence[Shot], seconds: float) -> Row:
    """What ended within the counted part of the run, so that neither an empty queue flatters it nor its rest."""
    begin, end = seconds * WARM_UP, seconds
    ended = [shot.seen for shot in shots if begin <= shot.at + shot.seen.took_s < end]
    good = [seen for seen in ended if seen.end is End.DONE and seen.took_s <= DEADLINE_MS / 1e3]
    refused = [seen for seen in ended if seen.status in (429, 503)]
    firsts = [seen.first_token_s for seen in good if seen.first_token_s is not None]
    gaps = [gap for seen in good for gap in seen.gaps_s]
    waits = [seen.took_s for seen in refused]

    def share(count: int) -> Cell:
        return count / len(ended) * 100

    return {
        "good/s": len(good) / (end - begin),
        "of peak %": None,
        "refused %": share(len(refused)),
        "too late %": share(len(ended) - len(good) - len(refused)),
        "refused p50 ms": of(waits, 50),
        "refused p99 ms": of(waits, 99),
        "first token p50 ms": of(firsts, 50),
        "first token p99 ms": of(firsts, 99),
        "between tokens p99 ms": of(gaps, 99),
        "refused because": ", ".join(f"{count} {reason}" for reason, count in _reasons(refused).most_common()) or None,
    }


def _reasons(refused: Sequence[Seen]) -> Counter[str]:
    """With how long the refused are told to stay away."""
    reasons: Counter[str] = Counter()
    for seen in refused:
        reasons[f"{seen.headers.get('x-gllm-reason')} (again in {seen.headers.get('retry-after')} s)"] += 1
    return reasons


def _number(cell: Cell) -> float:
    return float(cell) if isinstance(cell, int | float) else float("nan")


if __name__ == "__main__":
    sys.exit(scenario.main("overload", __doc__, measure))
