import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reliability.failed_logins import FailedLogins
from tests.support.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_a_few_failures_at_once_then_one_every_few_seconds(clock: FakeClock) -> None:
    logins = FailedLogins(clock, at_once=3, every_s=6)
    assert [logins.failed("a") for _ in range(5)] == [0, 0, 0, 6, 6]
    clock.advance(4)
    assert logins.failed("a") == 2
    clock.advance(2)
    assert [logins.failed("a"), logins.failed("a")] == [0, 6]


def test_after_a_rest_there_are_as_many_as_at_first_and_not_more(clock: FakeClock) -> None:
    logins = FailedLogins(clock, at_once=3, every_s=6)
    for _ in range(2):
        assert [logins.failed("a") for _ in range(4)] == [0, 0, 0, 6]
        clock.advance(1_000)


def test_addresses_have_nothing_to_do_with_each_other(clock: FakeClock) -> None:
    logins = FailedLogins(clock, at_once=1)
    assert [logins.failed("a"), logins.failed("b"), logins.failed("a")] == [0, 0, 6]


def test_the_longest_quiet_is_forgotten_when_there_are_too_many(clock: FakeClock) -> None:
    logins = FailedLogins(clock, at_once=1, most_addresses=2)
    assert [logins.failed(each) for each in "abac"] == [0, 0, 6, 0]
    assert len(logins) == 2
    assert [logins.failed(each) for each in "ab"] == [6, 0], "b was quiet for longer than a"


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=60),
    st.integers(1, 5),
    st.floats(0.5, 10),
)
def test_it_never_lets_more_pass_than_at_once_and_by_time(
    tries: list[tuple[str, float]], at_once: int, every_s: float
) -> None:
    clock = FakeClock(0.0)
    logins = FailedLogins(clock, at_once=at_once, every_s=every_s)
    passed: dict[str, list[float]] = {"a": [], "b": []}
    for address, pause in tries:
        clock.advance(pause)
        wait_s = logins.failed(address)
        assert 0 <= wait_s <= every_s + 1e-9
        if wait_s == 0:
            passed[address].append(clock.now)
    for times in passed.values():
        for first, begin in enumerate(times):
            for last in range(first, len(times)):
                assert last - first + 1 <= at_once + (times[last] - begin) / every_s + 1e-6
