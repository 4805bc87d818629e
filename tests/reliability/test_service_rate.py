"""How long a wait will be."""

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reliability.service_rate import ServiceRate
from tests.support.clock import FakeClock


def test_while_nothing_is_known_no_wait_is_predicted() -> None:
    rate = ServiceRate(FakeClock())
    assert (rate.wait_for(1_000, 1), rate.drained_in(1_000, 1)) == (0, 0)


def test_the_first_request_is_believed() -> None:
    rate = ServiceRate(FakeClock())
    rate.finished(8, 100)
    assert [rate.wait_for(0, 1), rate.wait_for(0, 4), rate.wait_for(3, 4), rate.drained_in(4, 4)] == [8, 2, 8, 8]


def test_more_slots_shorten_the_wait_at_once() -> None:
    rate = ServiceRate(FakeClock())
    rate.finished(8, 100)
    assert rate.wait_for(7, 4) == 2 * rate.wait_for(7, 8)


def test_without_slots_it_counts_as_if_there_were_one() -> None:
    rate = ServiceRate(FakeClock())
    rate.finished(8, 100)
    assert rate.wait_for(1, 0) == 16


def test_few_requests_weigh_alike() -> None:
    rate = ServiceRate(FakeClock())
    for took_s in (1, 2, 3):
        rate.finished(took_s, 100)
    assert rate.mean_s == pytest.approx(2, rel=0.01)


def test_old_ones_are_forgotten_by_time() -> None:
    clock = FakeClock()
    rate = ServiceRate(clock)
    for _ in range(50):
        rate.finished(10, 100)
    clock.advance(600)
    assert rate.mean_s == pytest.approx(10)
    rate.finished(1, 100)
    assert rate.mean_s == pytest.approx(1, abs=0.05)


def test_old_ones_are_forgotten_by_number() -> None:
    rate = ServiceRate(FakeClock())
    for _ in range(1_000):
        rate.finished(10, 100)
    for _ in range(300):
        rate.finished(1, 100)
    assert rate.mean_s == pytest.approx(1, abs=0.6)


@given(st.lists(st.tuples(st.floats(-10, 1_000), st.floats(0, 1_000)), min_size=1))
def test_the_mean_is_within_what_was_seen(seen: list[tuple[float, float]]) -> None:
    clock = FakeClock()
    rate = ServiceRate(clock)
    for seconds, took_s in seen:
        clock.advance(seconds)
        rate.finished(took_s, 100)
    times = [took_s for _, took_s in seen]
    assert min(times) - 1e-9 <= rate.mean_s <= max(times) + 1e-9


@pytest.mark.parametrize("slots", [1, 2, 8, 32])
@pytest.mark.parametrize("shape", ["alike", "different", "very different"])
def test_predicted_waits_are_right_on_average(slots: int, shape: str) -> None:
    """All slots busy, one waiting line, ten thousand requests."""
    draw = random.Random(7)
    shapes: dict[str, Callable[[], float]] = {
        "alike": lambda: 4.0,
        "different": lambda: draw.expovariate(1 / 4),
        "very different": lambda: draw.choice([0.5, 0.5, 0.5, 14.5]),
    }
    took = shapes[shape]
    clock = FakeClock(0)
    rate = ServiceRate(clock)
    ends = [(draw.uniform(0, 4), 4.0) for _ in range(slots)]
    heapq.heapify(ends)
    line, predicted, waited = 10, 0.0, 0.0
    arrivals: list[tuple[float, float]] = []
    for _ in range(10_000):
        clock.now, service_s = heapq.heappop(ends)
        rate.finished(service_s, 100)
        arrivals.append((clock.now, rate.wait_for(line - 1, slots)))
        if len(arrivals) > line:
            came, guess = arrivals[-line - 1]
            predicted += guess
            waited += clock.now - came
        service_s = took()
        heapq.heappush(ends, (clock.now + service_s, service_s))
    assert predicted == pytest.approx(waited, rel=0.15)


def test_short_requests_are_not_taken_for_long_ones() -> None:
    rate = ServiceRate(FakeClock())
    for _ in range(50):
        rate.finished(0.5, 100)
        rate.finished(20, 4_000)
    assert rate.times_of(100).mean_s == pytest.approx(0.5)
    assert rate.times_of(4_000).mean_s == pytest.approx(20)
    assert rate.times_of(1_000_000).mean_s == rate.mean_s == pytest.approx(10, rel=0.3), "of that size none was seen"


@given(st.floats(0.1, 10), st.floats(0, 0.5), st.integers(0, 2**32))
def test_nearly_no_request_takes_longer_than_most(mean_s: float, spread: float, seed: int) -> None:
    """By chance: dice that are thrown against it find a row that is."""
    clock, dice = FakeClock(), random.Random(seed)
    rate = ServiceRate(clock)
    times = [mean_s * (1 + spread * dice.uniform(-1, 1)) for _ in range(300)]
    for took_s in times:
        rate.finished(took_s, 100)
    mostly_s = rate.times_of(100).mostly_s
    assert sum(took_s > mostly_s + 1e-9 for took_s in times[150:]) <= 5
