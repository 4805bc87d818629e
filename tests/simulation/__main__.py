"""One seed with all that happened in it, or many in search of one that fails."""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.draw import world_of
from tests.simulation.invariants import check
from tests.simulation.memory import at_hand
from tests.simulation.seeds import failures
from tests.simulation.shrink import shrunk
from tests.simulation.simulate import simulate

AT_ONCE = 50
"""Seeds that a process gets to run at a time."""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="this one, with its history")
    parser.add_argument("--seeds", type=_span, metavar="FROM:TO", help="all of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--shrink", action="store_true", help="leave out what a violation does not need")
    parser.add_argument("--about", help="only those lines of the history that have this in them")
    asked = parser.parse_args(words)
    if asked.seeds is not None:
        return _many(asked.seeds, asked.jobs)
    if asked.seed is None:
        parser.error("name a seed, or --seeds FROM:TO")
    with at_hand():
        return _one(asked.seed, shrink=asked.shrink, about=asked.about or "")


def _one(seed: int, *, shrink: bool, about: str) -> int:
    world = world_of(seed)
    history = simulate(world)
    violations = check(history)
    if shrink and violations:
        world = shrunk(world, violations[0].invariant)
        history = simulate(world)
        violations = check(history)
    count = f"{len(world.visits)} visits, {world.gateways} gateways, {len(world.engines)} engines"
    print(f"seed {seed}: {count}, settings {world.settings}")
    print("\n".join(str(engine) for engine in world.engines))
    print("\n".join(line for line in history.lines() if about in line))
    print("\n".join(f"VIOLATED {violation}" for violation in violations) or "all invariants hold")
    return 1 if violations else 0


def _many(seeds: range, jobs: int) -> int:
    parts = [seeds[at : at + AT_ONCE] for at in range(0, len(seeds), AT_ONCE)]
    failed = done = 0
    with ProcessPoolExecutor(jobs) as pool:
        for part, found in zip(parts, pool.map(failures, parts), strict=True):
            done, failed = done + len(part), failed + len(found)
            for failure in found:
                print(failure, flush=True)
            print(f"{done} of {len(seeds)} seeds, {failed} failed", file=sys.stderr, end="\r", flush=True)
    print(f"{done} seeds, {failed} failed{' ' * 20}")
    return 1 if failed else 0


def _span(text: str) -> range:
    begin, _, end = text.partition(":")
    return range(int(begin), int(end))


if __name__ == "__main__":
    sys.exit(main())
