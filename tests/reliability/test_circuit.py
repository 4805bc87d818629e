"""When a replica is left alone, and how it comes back."""

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.reliability.circuit import Circuit, CircuitState
from tests.support.clock import FakeClock

CLOSED, OPEN, HALF_OPEN = CircuitState


@dataclass
class Bench:
    clock: FakeClock
    circuit: Circuit
    changes: list[CircuitState]

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.circuit.failed(self.circuit.entered())

    def pass_time(self) -> float:
        """As much as it asks for."""
        seconds = self.circuit.reopens_in()
        self.clock.advance(seconds)
        return seconds


@pytest.fixture
def bench() -> Bench:
    clock, changes = FakeClock(), list[CircuitState]()
    return Bench(clock, Circuit(3, 5, 30, clock, changes.append), changes)


def test_failures_in_a_row_open_it(bench: Bench) -> None:
    bench.fail(2)
    assert bench.circuit.allows()
    bench.fail()
    assert not bench.circuit.allows()
    assert (bench.circuit.reopens_in(), bench.changes) == (5, [OPEN])


def test_a_success_between_failures_keeps_it_closed(bench: Bench) -> None:
    for _ in range(10):
        bench.fail(2)
        bench.circuit.succeeded(bench.circuit.entered())
    assert (bench.circuit.allows(), bench.circuit.reopens_in(), bench.changes) == (True, 0, [])


def test_what_says_nothing_neither_opens_nor_mends(bench: Bench) -> None:
    bench.fail(2)
    for _ in range(10):
        bench.circuit.abandoned(bench.circuit.entered())
    bench.fail()
    assert bench.changes == [OPEN]


def test_after_the_pause_exactly_one_tries(bench: Bench) -> None:
    bench.fail(3)
    bench.clock.advance(4.99)
    assert not bench.circuit.allows()
    bench.clock.advance(0.02)
    assert bench.circuit.allows()
    bench.circuit.entered()
    assert not bench.circuit.allows()
    assert bench.changes == [OPEN, HALF_OPEN]


def test_the_try_that_succeeds_closes_it_for_all_and_forgets(bench: Bench) -> None:
    bench.fail(3)
    bench.pass_time()
    bench.circuit.succeeded(bench.circuit.entered())
    assert bench.changes == [OPEN, HALF_OPEN, CLOSED]
    bench.fail(2)
    assert bench.circuit.allows()
    bench.fail()
    assert bench.circuit.reopens_in() == 5


def test_each_try_that_fails_doubles_the_pause_up_to_the_longest(bench: Bench) -> None:
    bench.fail(3)
    pauses = []
    for _ in range(5):
        pauses.append(bench.pass_time())
        bench.fail()
    assert pauses == [5, 10, 20, 30, 30]


def test_a_try_that_hung_up_gives_its_place_to_the_next(bench: Bench) -> None:
    bench.fail(3)
    bench.pass_time()
    bench.circuit.abandoned(bench.circuit.entered())
    assert bench.circuit.allows()
    assert bench.circuit.reopens_in() == 0
    bench.circuit.succeeded(bench.circuit.entered())
    assert bench.changes == [OPEN, HALF_OPEN, CLOSED]


@pytest.mark.parametrize("ending", ["succeeded", "failed", "abandoned"])
def test_calls_from_before_it_opened_change_nothing(bench: Bench, ending: str) -> None:
    end = getattr(bench.circuit, ending)
    before = [bench.circuit.entered() for _ in range(8)]
    bench.fail(3)
    end(before.pop())
    assert (bench.circuit.state, bench.circuit.reopens_in()) == (OPEN, 5)
    bench.pass_time()
    end(before.pop())
    probe = bench.circuit.entered()
    for _ in range(3):
        end(before.pop())
    assert (bench.circuit.state, bench.circuit.allows()) == (HALF_OPEN, False)
    bench.circuit.succeeded(probe)
    for entry in before:
        end(entry)
    bench.fail(2)
    assert bench.changes == [OPEN, HALF_OPEN, CLOSED]


def test_a_pause_longer_than_the_longest_is_the_longest() -> None:
    circuit = Circuit(1, 60, 30, FakeClock(), lambda state: None)
    circuit.failed(circuit.entered())
    assert circuit.reopens_in() == 30


class Life(RuleBasedStateMachine):
    """Beside a model that knows of every call since when it has been on its way."""

    FAILURES, PAUSE_S, LONGEST_S = 3, 4.0, 16.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.changes = [CLOSED]
        self.circuit = Circuit(self.FAILURES, self.PAUSE_S, self.LONGEST_S, self.clock, self.changes.append)
        self.calls: list[tuple[int, int]] = []
        """Of each its entry, and how often the circuit had been opened when it entered."""
        self.probe: tuple[int, int] | None = None
        self.openings = 0
        self.row = 0
        self.pause_s = self.PAUSE_S
        self.opens_at: float | None = None
        """When one may try; `None`: closed."""

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 8.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def call(self) -> None:
        closed = self.opens_at is None
        may = closed or (self.probe is None and self.opens_at is not None and self.clock() >= self.opens_at)
        assert self.circuit.allows() == may
        if may:
            call = (self.circuit.entered(), self.openings)
            self.calls.append(call)
            if not closed:
                self.probe = call

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), ending=st.sampled_from(["succeeded", "failed", "failed", "abandoned"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        getattr(self.circuit, ending)(call[0])
        if call is self.probe:
            self.probe = None
            if ending == "succeeded":
                self.opens_at, self.row, self.pause_s = None, 0, self.PAUSE_S
            elif ending == "failed":
                self.pause_s = min(2 * self.pause_s, self.LONGEST_S)
                self.opened()
        elif call[1] == self.openings and self.opens_at is None:
            self.row = {"succeeded": 0, "failed": self.row + 1, "abandoned": self.row}[ending]
            if self.row == self.FAILURES:
                self.opened()

    def opened(self) -> None:
        self.openings += 1
        self.row = 0
        self.opens_at = self.clock() + self.pause_s

    @invariant()
    def they_agree(self) -> None:
        if self.opens_at is None:
            expected = {CLOSED}
        elif self.probe is not None:
            expected = {HALF_OPEN}
        else:
            expected = {OPEN} if self.clock() < self.opens_at else {OPEN, HALF_OPEN}
            assert self.circuit.reopens_in() == max(0.0, self.opens_at - self.clock())
        assert self.circuit.state in expected
        assert self.circuit.state is self.changes[-1]

    @invariant()
    def only_changes_are_told(self) -> None:
        assert all(one is not other for one, other in zip(self.changes, self.changes[1:], strict=False))


TestLife = Life.TestCase
