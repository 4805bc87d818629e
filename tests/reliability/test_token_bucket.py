"""A bucket of tokens, refilled steadily."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reliability.token_bucket import TokenBucket
from tests.support.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_an_empty_bucket_says_how_long_to_wait(clock: FakeClock) -> None:
    bucket = TokenBucket(capacity=2, per_second=1, clock=clock)
    assert [bucket.take(1), bucket.take(1), bucket.take(1)] == [0, 0, 1.0]
    clock.advance(1)
    assert bucket.take(1) == 0


def test_what_is_refused_takes_nothing(clock: FakeClock) -> None:
    bucket = TokenBucket(capacity=10, per_second=1, clock=clock)
    bucket.take(7)
    assert [bucket.take(5), bucket.take(3), bucket.take(1)] == [2.0, 0, 1.0]


def test_it_fills_up_to_its_capacity_and_no_further(clock: FakeClock) -> None:
    bucket = TokenBucket(capacity=10, per_second=1, clock=clock)
    bucket.take(10)
    clock.advance(3_600)
    assert bucket.level() == 10
    bucket.put(5)
    assert bucket.level() == 10


def test_what_was_used_in_excess_is_owed(clock: FakeClock) -> None:
    bucket = TokenBucket(capacity=10, per_second=2, clock=clock)
    bucket.take(10)
    bucket.put(-6)
    assert bucket.level() == -6
    assert bucket.take(2) == 4.0
    clock.advance(4)
    assert bucket.take(2) == 0


def test_what_is_larger_than_the_bucket_never_fits(clock: FakeClock) -> None:
    bucket = TokenBucket(capacity=10, per_second=1, clock=clock)
    assert bucket.take(11) == math.inf
    assert TokenBucket(capacity=1, per_second=0, clock=clock).take(2) == math.inf


def test_without_refill_what_is_taken_is_gone(clock: FakeClock) -> None:
    bucket = TokenBucket(capacity=1, per_second=0, clock=clock)
    assert [bucket.take(1), bucket.take(1)] == [0, math.inf]


def test_a_clock_that_jumps_back_neither_fills_nor_freezes_the_bucket(clock: FakeClock) -> None:
    bucket = TokenBucket(capacity=10, per_second=1, clock=clock)
    bucket.take(10)
    clock.advance(-500)
    assert bucket.level() == 0
    clock.advance(3)
    assert bucket.level() == 3


def test_another_size_keeps_how_full_it_is(clock: FakeClock) -> None:
    bucket = TokenBucket(capacity=10, per_second=1, clock=clock)
    bucket.take(5)
    bucket.resize(100, 10)
    assert bucket.level() == 50
    bucket.put(-150)
    bucket.resize(10, 1)
    assert bucket.level() == -10
    clock.advance(20)
    assert bucket.level() == 10


STEPS = st.lists(st.tuples(st.sampled_from(["take", "pass", "put", "owe"]), st.integers(0, 50)), max_size=60)


@given(st.integers(1, 60), st.integers(0, 20), STEPS)
def test_it_never_grants_more_than_it_holds_and_is_given(
    capacity: int, per_second: int, steps: list[tuple[str, int]]
) -> None:
    clock = FakeClock(0.0)
    bucket = TokenBucket(capacity, per_second, clock)
    granted = owed = put = 0
    for step, n in steps:
        if step == "pass":
            clock.advance(n)
        elif step == "put":
            bucket.put(n)
            put += n
        elif step == "owe":
            bucket.put(-n)
            owed += n
        elif bucket.take(n) == 0:
            granted += n
        assert bucket.level() <= capacity
        assert granted + owed <= capacity + per_second * clock.now + put + owed
        assert bucket.level() <= capacity + per_second * clock.now + put - owed - granted


@given(st.integers(1, 60), st.integers(1, 20), st.lists(st.integers(1, 60), max_size=20), st.integers(1, 60))
def test_who_waits_as_long_as_told_is_served(capacity: int, per_second: int, before: list[int], n: int) -> None:
    clock = FakeClock(0.0)
    bucket = TokenBucket(capacity, per_second, clock)
    for each in before:
        bucket.take(each)
    wait = bucket.take(n)
    if n <= capacity:
        clock.advance(wait + 1e-6)
        assert wait == 0 or bucket.take(n) == 0
    else:
        assert wait == math.inf
