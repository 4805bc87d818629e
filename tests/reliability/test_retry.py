"""Whether to try again, and after what pause."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EngineBusy, EngineFailed, EngineLacks, EngineRefused, EngineStalled, GatewayError, UnknownModel
from app.reliability.retry import Retry

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
