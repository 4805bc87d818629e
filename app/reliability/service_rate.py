"""How soon slots come free, by how long recent requests held theirs."""

import math

from app.clock import Clock

MANY = 100
"""About so many requests are remembered,"""
LONG_S = 60.0
"""and those of about so many seconds."""


class ServiceRate:
    """`slots` requests that hold theirs for `mean_s` leave one every `mean_s / slots`: so long lasts each turn.

    Slots are what is there now, so a changed number counts at once; that more of them slow each other down is learned
    as they finish. With one slot the wait is overestimated by up to half a request, whose beginning nobody looks up.
    """

    def __init__(self, clock: Clock) -> None:
        self.mean_s = 0.0
        self._clock = clock
        self._weight = 0.0
        self._at = clock()

    def finished(self, took_s: float) -> None:
        """A slot is free again, however its request ended."""
        now = self._clock()
        self._weight = 1 + self._weight * (1 - 1 / MANY) * math.exp(min(0.0, self._at - now) / LONG_S)
        self._at = now
        self.mean_s += (took_s - self.mean_s) / self._weight

    def wait_for(self, ahead: int, slots: int) -> float:
        """Seconds until one gets a slot with `ahead` before it, while all are taken; 0.0 while nothing is known."""
        return self.drained_in(ahead + 1, slots)

    def drained_in(self, waiting: int, slots: int) -> float:
        """Seconds until so many have got slots."""
        return self.mean_s * waiting / max(1, slots)
