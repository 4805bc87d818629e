"""A seed always tells the same story: in this process, in another one, and whatever else runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.draw import world_of
from tests.simulation.simulate import simulate

ROOT = Path(__file__).parents[2]
SEEDS = [3, 8, 9, 16, 112, 286]

DIGESTS = f"""
from tests.simulation.simulate import simulate
from tests.simulation.draw import world_of
print(*(simulate(world_of(seed)).digest() for seed in {SEEDS}))
"""


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_twice_is_the_same_history(seed: int) -> None:
    first, again = simulate(world_of(seed)), simulate(world_of(seed))
    assert first.lines() == again.lines()
    assert first.turns == again.turns


def test_another_process_tells_the_same() -> None:
    """Strings hash differently there, and objects lie elsewhere."""
    digests = [simulate(world_of(seed)).digest() for seed in SEEDS]
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == digests


def test_two_seeds_are_two_histories() -> None:
    assert len({simulate(world_of(seed)).digest() for seed in SEEDS}) == len(SEEDS)
