"""Seeds, again and again: those that failed once, and some more. `make simulate` runs thousands."""

from unittest import mock

import pytest

from app.cluster.replica import Lease
from tests.simulation.__main__ import main
from tests.simulation.draw import world_of
from tests.simulation.invariants import check
from tests.simulation.seeds import failure_of, failures, kept_seeds
from tests.simulation.shrink import shrunk
from tests.simulation.simulate import simulate

SEEDS = 300
AT_ONCE = 50


@pytest.mark.parametrize("seed", kept_seeds())
def test_what_failed_once_holds(seed: int) -> None:
    failure = failure_of(seed)
    assert not failure.violations, str(failure)


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE), ids=lambda first: f"{first} to {first + AT_ONCE - 1}")
def test_all_holds_in_the_worlds_of_seeds(first: int) -> None:
    found = failures(range(first, first + AT_ONCE))
    assert not found, "\n".join(map(str, found))


def test_a_failing_seed_says_what_is_wrong_and_how_to_run_it_again() -> None:
    with mock.patch.object(Lease, "release"):
        told = str(failure_of(8))
    assert told.startswith("seed 8\n")
    assert "all_is_given_back: " in told
    assert told.endswith("again: python -m tests.simulation 8")


def test_one_seed_is_told_from_its_beginning_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["8"]) == 0
    told = capsys.readouterr().out
    for word in ("client: 8-v0 comes", "is asked for 8-v0", "gateway: 8-v0 is", "the end,", "all invariants hold"):
        assert word in told
    with mock.patch.object(Lease, "release"):
        assert main(["8", "--shrink"]) == 1
    assert "VIOLATED all_is_given_back" in capsys.readouterr().out


def test_many_seeds_run_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "0:60", "--jobs", "2"]) == 0
    assert "60 seeds, 0 failed" in capfd.readouterr().out


def test_a_failing_world_shrinks_to_what_its_failure_needs() -> None:
    with mock.patch.object(Lease, "release"):
        world = world_of(8)
        small = shrunk(world, "all_is_given_back")
        assert any(violation.invariant == "all_is_given_back" for violation in check(simulate(small)))
    assert (len(small.visits), len(small.faults)) == (1, 0)
    assert set(small.visits) < set(world.visits)
