"""Whether a replica gets calls: not for a while after failures in a row, then one call tries."""

from collections.abc import Callable
from enum import StrEnum

from app.clock import Clock


class CircuitState(StrEnum):
    CLOSED = "closed"
    """Calls go through."""
    OPEN = "open"
    """None do, until the pause is over."""
    HALF_OPEN = "half_open"
    """One tries, or tried and could not say."""


class Circuit:
    """A call's life: `entered` if it `allows`, then one of `succeeded`, `failed` or `abandoned`, with the entry.

    The entry tells the call that tries from those that were on their way when the circuit opened. Those say nothing
    about the replica as it is now, however they end.
    """

    def __init__(
        self,
        failures: int,
        pause_s: float,
        longest_pause_s: float,
        clock: Clock,
        on_change: Callable[[CircuitState], None],
    ) -> None:
        self.state = CircuitState.CLOSED
        self._most_failures = failures
        self._first_pause_s = min(pause_s, longest_pause_s)
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._on_change = on_change
        self._entry = 0
        """Of all calls since it opened last."""
        self._failures = 0
        self._pause_s = self._first_pause_s
        self._opened = 0.0
        self._trying = False

    def allows(self) -> bool:
        if self.state is CircuitState.CLOSED:
            return True
        return not self._trying and self.reopens_in() <= 0

    def reopens_in(self) -> float:
        """Seconds until one may try; 0.0 also while one tries."""
        if self.state is not CircuitState.OPEN:
            return 0.0
        return max(0.0, self._opened + self._pause_s - self._clock())

    def entered(self) -> int:
        """The caller has asked `allows`, with no await in between."""
        if self.state is not CircuitState.CLOSED:
            self._trying = True
            self._become(CircuitState.HALF_OPEN)
        return self._entry

    def succeeded(self, entry: int) -> None:
        if entry != self._entry:
            return
        self._failures = 0
        if self._trying:
            self._trying = False
            self._pause_s = self._first_pause_s
            self._become(CircuitState.CLOSED)

    def failed(self, entry: int) -> None:
        if entry != self._entry:
            return
        if self._trying:
            self._open(min(2 * self._pause_s, self._longest_pause_s))
            return
        self._failures += 1
        if self._failures >= self._most_failures:
            self._open(self._first_pause_s)

    def abandoned(self, entry: int) -> None:
        """It hung up, or met backpressure, or was at fault itself: the next one may try."""
        if entry == self._entry:
            self._trying = False

    def _open(self, pause_s: float) -> None:
        self._entry += 1
        self._failures = 0
        self._trying = False
        self._pause_s = pause_s
        self._opened = self._clock()
        self._become(CircuitState.OPEN)

    def _become(self, state: CircuitState) -> None:
        if state is not self.state:
            self.state = state
            self._on_change(state)
