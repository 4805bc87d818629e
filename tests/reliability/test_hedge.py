"""When a slow stream gets a second try."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reliability.hedge import ENOUGH, KEPT, HedgeDelay
from tests.support.clock import FakeClock


def learned(times: list[float], share: float = 0.1) -> HedgeDelay:
    hedge = HedgeDelay(share, FakeClock())
    for ttfb_s in times:
        hedge.saw("m", ttfb_s)
    return hedge


def test_the_slowest_twentieth_is_slow() -> None:
    assert learned([each / 100 for each in range(100)]).after("m") == 0.94


def test_with_too_little_known_nothing_is_slow() -> None:
    assert learned([1.0] * (ENOUGH - 1)).after("m") is None
    assert learned([1.0] * ENOUGH).after("m") == 1.0


def test_each_model_has_its_own_pace() -> None:
    hedge = learned([1.0] * 100)
    for _ in range(100):
        hedge.saw("large", 9.0)
    assert [hedge.after(model) for model in ("m", "large", "unknown")] == [1.0, 9.0, None]


def test_a_new_pace_is_learned() -> None:
    assert learned([1.0] * 1_000 + [0.1] * KEPT).after("m") == 0.1


def test_off_is_off() -> None:
    hedge = learned([1.0] * 1_000, share=0.0)
    assert (hedge.after("m"), hedge.take()) == (None, False)


def test_second_tries_are_a_share_of_recent_streams() -> None:
    clock = FakeClock()
    hedge = HedgeDelay(0.02, clock)
    for _ in range(100):
        hedge.saw("m", 1.0)
    assert [hedge.take() for _ in range(3)] == [True, True, False]
    clock.advance(61)
    assert not hedge.take()


@given(st.floats(0.01, 0.2), st.lists(st.tuples(st.sampled_from([0.0, 1.0, 20.0]), st.booleans())))
def test_there_are_never_more_than_their_share(share: float, steps: list[tuple[float, bool]]) -> None:
    clock = FakeClock()
    hedge = HedgeDelay(share, clock)
    streams = taken = 0
    for seconds, begins in steps:
        clock.advance(seconds)
        if begins:
            hedge.saw("m", 1.0)
            streams += 1
        else:
            taken += hedge.take()
        assert taken <= share * streams + 1e-9


@given(st.lists(st.floats(0, 600), min_size=ENOUGH, max_size=3 * KEPT))
def test_about_a_twentieth_of_the_latest_are_slower(times: list[float]) -> None:
    slow = learned(times).after("m")
    latest = times[-KEPT:]
    assert slow is not None
    assert sum(each > slow for each in latest) <= len(latest) / 20
    assert sum(each >= slow for each in latest) > len(latest) // 20


@pytest.mark.parametrize("pace", [0.001, 1.0, 100.0])
def test_at_an_even_pace_nobody_is_slow_before_the_others(pace: float) -> None:
    assert learned([pace] * 300).after("m") == pace
