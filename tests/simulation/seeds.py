"""Running seeds, and saying how to run one again."""

from dataclasses import dataclass
from pathlib import Path

from tests.simulation.draw import world_of
from tests.simulation.invariants import Violation, check
from tests.simulation.memory import at_hand
from tests.simulation.simulate import simulate

KEPT = Path(__file__).parent / "kept_seeds.txt"


@dataclass(frozen=True)
class Failure:
    seed: int
    violations: list[Violation]

    def __str__(self) -> str:
        told = "\n".join(f"  {violation}" for violation in self.violations)
        return f"seed {self.seed}\n{told}\n  again: python -m tests.simulation {self.seed}"


def failures(seeds: range | list[int]) -> list[Failure]:
    with at_hand():
        return [failure for failure in map(failure_of, seeds) if failure.violations]


def failure_of(seed: int) -> Failure:
    return Failure(seed, check(simulate(world_of(seed))))


def kept_seeds() -> list[int]:
    """Those that failed once. Behind each stands what it found."""
    lines = [line.partition("#")[0].strip() for line in KEPT.read_text().splitlines()]
    return [int(line) for line in lines if line]
