"""Seeds, again and again: those that failed once, and a fixed set. A failing one says how to run it alone."""

from unittest import mock

import pytest

from app.cluster.replica import Lease
from tests.simulation.draw import world_of
from tests.simulation.invariants import check
from tests.simulation.seeds import failure_of, failures, kept_seeds
from tests.simulation.shrink import shrunk
from tests.simulation.simulate import simulate

SEEDS = 2_000
AT_ONCE = 100


@pytest.mark.parametrize("seed", kept_seeds())
def test_what_failed_once_holds(seed: int) -> None:
    failure = failure_of(seed)
    assert not failure.violations, str(failure)


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE), ids=lambda first: f"{first} to {first + AT_ONCE - 1}")
def test_all_holds_in_the_worlds_of_seeds(first: int) -> None:
    found = failures(range(first, first + AT_ONCE))
    assert not found, "\n".join(map(str, found))


def test_a_failing_world_shrinks_to_what_its_failure_needs() -> None:
    with mock.patch.object(Lease, "release"):
        world = world_of(8)
        small = shrunk(world, "all_is_given_back")
        assert any(violation.invariant == "all_is_given_back" for violation in check(simulate(small)))
    assert (len(small.visits), len(small.faults)) == (1, 0)
    assert set(small.visits) < set(world.visits)
