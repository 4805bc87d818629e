"""Whether the hot path got dearer: CPU per request of gllm, all policies on, to that of a plain FastAPI + httpx proxy.

    python -m bench guard [--pairs 12]

A time means nothing on a machine that does other work, and little on another machine. A ratio does: both are Python on
the same core, take turns in slices shorter than a second, and are slowed by the same things. Ends with 1 if the ratio
is above the one recorded here by more than the slack. Who makes the hot path cheaper records the new one, which is
printed.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.cost import measures
from bench.cost.cores import of_this_machine
from bench.cost.engine import engine
from bench.cost.gateway import ALL, REPLICAS
from bench.cost.lengths import QUICK
from bench.cost.measures import Bench
from bench.cost.peers import PLAIN
from bench.cost.standing import Standing, Start, started

RECORDED = 0.26
SLACK = 1.25
"""Runs on a busy machine were up to a tenth off."""

PAIRS = 12
SLICE_S = 0.7
CONCURRENCY = 8
"""httpx is dearer the more connections it has; with few of them the proxy is a steady yardstick."""

KEPT, DEARER, INVALID = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench guard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--slice", type=float, default=SLICE_S, metavar="SECONDS", help="of load")
    args = parser.parse_args(argv)
    pairs = measured(args.pairs, args.slice)
    code, sentence = verdict(pairs)
    print(sentence)
    return code


Pair = tuple[float, float]
"""CPU µs per request, of gllm and of the proxy; not a number where requests failed."""


def verdict(pairs: Sequence[Pair]) -> tuple[int, str]:
    if any(mine != mine or theirs != theirs for mine, theirs in pairs):
        return INVALID, "Requests failed: nothing was measured."
    ratio = statistics.median(mine / theirs for mine, theirs in pairs)
    mine, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
    found = f"{mine:.0f} µs to the plain proxy's {theirs:.0f}: {ratio:.3f}, recorded {RECORDED:g}"
    if ratio > RECORDED * SLACK:
        return DEARER, f"The hot path got dearer: {found}, allowed {RECORDED * SLACK:.3f}."
    hint = f"; it got cheaper: record {ratio:.2f}" if ratio < RECORDED / SLACK else ""
    return KEPT, f"The hot path costs what it did: {found}{hint}."


def measured(pairs: int, slice_s: float) -> list[Pair]:
    cores = of_this_machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gllm-bench-")))
        bench = Bench(stack.enter_context(engine(REPLICAS, cores.engine)), cores, QUICK)
        bench = replace(bench, lengths=replace(QUICK, concurrency=CONCURRENCY, window_s=slice_s))

        def stand(name: str, start: Start) -> Standing:
            return stack.enter_context(started(name, start, cores.gateway, folder / name, cores.load))

        both = stand("gllm", ALL.start(bench.engine)), stand("plain", PLAIN.start(bench.engine))
        for each in both:
            _us(bench, each)  # warm
        return [(_us(bench, both[0]), _us(bench, both[1])) for _ in range(pairs)]


def _us(bench: Bench, standing: Standing) -> float:
    with standing.awake():
        found = measures.closed(bench, standing)
    return float("nan") if found["closed_failed"] else found["us_per_request"]


if __name__ == "__main__":
    sys.exit(main())
