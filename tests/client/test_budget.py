"""The retries that all calls of a client share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gllm.client.retries import Retries, RetryBudget
from tests.support.clock import FakeClock


def budget(clock: FakeClock, **limits: float) -> RetryBudget:
    return RetryBudget(Retries(clock=clock, **{"share": 0.2, "least_per_s": 1.0, "longest_pause_s": 5.0, **limits}))  # type: ignore[arg-type]


def test_what_is_saved_comes_at_once_and_what_is_not_in_its_turn() -> None:
    shared = budget(FakeClock())
    turns = [shared.withdraw() for _ in range(16)]
    assert turns == [0.0] * 10 + [1.0, 2.0, 3.0, 4.0, 5.0, None]


def test_time_brings_new_ones_and_so_do_calls() -> None:
    clock = FakeClock()
    shared = budget(clock)
    while shared.withdraw() is not None:
        pass
    clock.advance(1)
    assert shared.withdraw() == pytest.approx(5.0)
    assert shared.withdraw() is None
    for _ in range(5):
        shared.deposit()
    assert shared.withdraw() == pytest.approx(5.0)


def test_without_a_minimum_calls_alone_bring_retries() -> None:
    shared = budget(FakeClock(), least_per_s=0.0, share=0.5)
    assert [shared.withdraw(), shared.withdraw()] == [0.0, None]
    shared.deposit()
    assert shared.withdraw() is None
    shared.deposit()
    assert shared.withdraw() == 0.0


@given(
    steps=st.lists(st.sampled_from(["call", "retry", "wait"]), max_size=300),
    share=st.floats(0, 1),
    least=st.floats(0, 5),
)
def test_retries_never_exceed_the_share_and_the_minimum(steps: list[str], share: float, least: float) -> None:
    clock = FakeClock()
    shared = budget(clock, share=share, least_per_s=least)
    began, calls, latest = clock(), 0, clock()
    taken: list[float] = []
    for step in steps:
        if step == "call":
            shared.deposit()
            calls += 1
        elif step == "wait":
            clock.advance(0.7)
        elif (turn := shared.withdraw()) is not None:
            assert turn <= 5.0 + 1e-9
            taken.append(clock() + turn)
            latest = max(latest, taken[-1])
    saved = max(1.0, least * RetryBudget.SAVED_S)
    assert len(taken) <= saved + calls * share + (latest - began) * least + 1e-6
