"""Whether to try again, after what pause, and how often in all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EngineBusy, EngineFailed, EngineLacks, EngineRefused, EngineStalled, GatewayError, UnknownModel
from app.reliability.retry import Retry, RetryBudget
from tests.support.clock import FakeClock

POLICIES = st.builds(
    Retry,
    attempts=st.integers(1, 10),
    first_pause_s=st.floats(0, 1),
    longest_pause_s=st.floats(0, 10),
    jitter=st.sampled_from([lambda: 0.0, lambda: 0.5, lambda: math.nextafter(1, 0)]),
)
MENDABLE = st.sampled_from([EngineFailed(), EngineStalled(), EngineBusy(retry_after=3)])


def test_pauses_double_up_to_the_longest() -> None:
    retry = Retry(attempts=6, first_pause_s=0.1, longest_pause_s=0.5, jitter=lambda: 1.0)
    pauses = [retry.pause_after(attempt, EngineFailed(), 60) for attempt in range(1, 7)]
    assert pauses == [0.1, 0.2, 0.4, 0.5, 0.5, None]


def test_a_pause_is_anything_between_nothing_and_its_bound() -> None:
    def first(jitter: float) -> float | None:
        return Retry(first_pause_s=0.1, jitter=lambda: jitter).pause_after(1, EngineFailed(), 60)

    assert [first(0), first(0.25), first(1)] == [0, 0.025, 0.1]


@given(POLICIES, st.integers(1, 20), MENDABLE, st.floats(-10, 600))
def test_a_pause_is_within_its_bounds_the_attempts_and_the_deadline(
    retry: Retry, attempt: int, error: GatewayError, left_s: float
) -> None:
    pause = retry.pause_after(attempt, error, left_s)
    if pause is None:
        assert attempt >= retry.attempts or left_s <= retry.longest_pause_s
    else:
        assert attempt < retry.attempts
        assert 0 <= pause <= retry.longest_pause_s
        assert pause < left_s


@given(POLICIES, st.integers(1, 20), st.sampled_from([EngineRefused(), EngineLacks(), UnknownModel()]))
def test_what_another_replica_cannot_mend_is_never_tried_again(retry: Retry, attempt: int, error: GatewayError) -> None:
    assert retry.pause_after(attempt, error, math.inf) is None


@pytest.mark.parametrize("left_s", [0.0, -1.0, -math.inf])
def test_past_the_deadline_nothing_is_tried_again(left_s: float) -> None:
    assert Retry(jitter=lambda: 0.0).pause_after(1, EngineFailed(), left_s) is None


def test_one_attempt_means_no_second() -> None:
    assert Retry(attempts=1).pause_after(1, EngineFailed(), math.inf) is None


def retries(budget: RetryBudget, most: int = 1_000) -> int:
    return next((made for made in range(most) if not budget.withdraw()), most)


def test_first_tries_bring_a_share_of_retries() -> None:
    budget = RetryBudget(0.2, FakeClock(), least_per_s=0)
    assert retries(budget) == 0
    for _ in range(100):
        budget.deposit()
    assert retries(budget) == 20


def test_few_requests_have_a_few_retries_too() -> None:
    clock = FakeClock()
    budget = RetryBudget(0.2, clock, least_per_s=1, ttl_s=10)
    assert retries(budget) == 9
    clock.advance(11)
    assert retries(budget) == 9


def test_a_share_of_nothing_is_no_retries_at_all() -> None:
    budget = RetryBudget(0.0, FakeClock(), least_per_s=100)
    for _ in range(100):
        budget.deposit()
    assert retries(budget) == 0


def test_what_was_not_used_is_not_saved_up() -> None:
    clock = FakeClock()
    budget = RetryBudget(0.2, clock, least_per_s=0, ttl_s=10)
    for _ in range(100):
        budget.deposit()
    clock.advance(11)
    for _ in range(10):
        budget.deposit()
    assert retries(budget) == 2


def test_what_is_left_is_known_without_taking_it() -> None:
    clock = FakeClock()
    budget = RetryBudget(0.2, clock, least_per_s=1, ttl_s=10)
    for _ in range(20):
        budget.deposit()
    assert [budget.left, budget.left] == [13, 13]
    assert retries(budget) == 13
    assert (budget.left, budget.denied) == (0, 1)
    clock.advance(11)
    assert budget.left == 9, "what was made so long ago counts no more, although nobody has asked since"
    assert RetryBudget(0.0, clock).left is None


def test_a_budget_that_is_off_denies_nothing() -> None:
    budget = RetryBudget(0.0, FakeClock())
    assert not budget.withdraw()
    assert budget.denied == 0


def test_a_clock_that_jumps_far_ahead_leaves_an_empty_budget() -> None:
    clock = FakeClock()
    budget = RetryBudget(1.0, clock, least_per_s=0)
    budget.deposit()
    clock.advance(1e9)
    assert not budget.withdraw()


STEPS = st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0, 4.0]), st.integers(0, 20), st.integers(0, 20)), max_size=40)


@given(
    STEPS, st.sampled_from([0.1, 0.2, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.sampled_from([2.0, 10.0])
)
def test_in_no_stretch_of_time_are_there_more_retries_than_agreed(
    steps: list[tuple[float, int, int]], share: float, least_per_s: float, ttl_s: float
) -> None:
    clock = FakeClock()
    budget = RetryBudget(share, clock, least_per_s, ttl_s)
    firsts: list[float] = []
    made: list[float] = []
    for seconds, requests, wanted in steps:
        clock.advance(seconds)
        for _ in range(requests):
            budget.deposit()
            firsts.append(clock())
        made += [clock() for _ in range(retries(budget, wanted))]
    moments = sorted(set(made))
    for i, begin in enumerate(moments):
        for end in moments[i:]:
            window_s = end - begin + ttl_s
            recent = sum(begin - ttl_s <= at <= end for at in firsts)
            count = sum(begin <= at <= end for at in made)
            assert count <= share * recent + least_per_s * window_s + 1


@given(STEPS, st.sampled_from([0.1, 0.5, 1.0]), st.sampled_from([0.0, 1.0, 3.0]))
def test_what_is_said_to_be_left_is_what_can_be_had(
    steps: list[tuple[float, int, int]], share: float, least_per_s: float
) -> None:
    clock = FakeClock()
    budget = RetryBudget(share, clock, least_per_s)
    for seconds, requests, wanted in steps:
        for _ in range(requests):
            budget.deposit()
        clock.advance(seconds)
        left = budget.left
        assert left is not None
        made = retries(budget, wanted)
        assert made == min(left, wanted)
