"""How soon slots come free, and how long a request will hold its own, by how long recent ones held theirs."""

import math

from app.clock import Clock

MANY = 100
"""About so many requests are remembered,"""
_KEPT = 1 - 1 / MANY
LONG_S = 60.0
"""and those of about so many seconds."""
FEW = 5.0
"""With fewer of its own size a request is taken for one like all others."""
MOSTLY = 3.0
"""Nearly no request is further from the mean than so many mean distances."""


class Times:
    """Their mean, and their mean distance from it, which forget."""

    __slots__ = ("_at", "mean_s", "off_s", "weight")

    def __init__(self, now: float) -> None:
        self.mean_s = 0.0
        self.off_s = 0.0
        self.weight = 0.0
        self._at = now

    def saw(self, took_s: float, now: float) -> None:
        passed_s = max(0.0, now - self._at)
        self.weight = 1 + self.weight * _KEPT * math.exp(-passed_s / LONG_S)
        self._at = now
        off_s = took_s - self.mean_s
        self.mean_s += off_s / self.weight
        if self.weight > 1:
            self.off_s += (abs(off_s) - self.off_s) / self.weight

    @property
    def mostly_s(self) -> float:
        """Nearly none takes longer."""
        return self.mean_s + MOSTLY * self.off_s

    @property
    def hardly_s(self) -> float:
        """Few take less."""
        return max(0.0, self.mean_s - self.off_s)


class ServiceRate:
    """`slots` requests that hold theirs for `mean_s` leave one every `mean_s / slots`: so long lasts each turn.

    Slots are what is there now, so a changed number counts at once; that more of them slow each other down is learned
    as they finish. With one slot the wait is overestimated by up to half a request, whose beginning nobody looks up.

    How long one will hold its slot is learned apart for sizes, by powers of two of the expected cost: that long
    answers take long must not refuse a short one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all = Times(clock())
        self._by_size: dict[int, Times] = {}

    @property
    def mean_s(self) -> float:
        return self._all.mean_s

    def finished(self, took_s: float, size: float) -> None:
        """A slot is free again, however its request ended; `size` is what its cost was expected to be."""
        now = self._clock()
        self._all.saw(took_s, now)
        size_class = _class_of(size)
        times = self._by_size.get(size_class)
        if times is None:
            times = self._by_size[size_class] = Times(now)
        times.saw(took_s, now)

    def wait_for(self, ahead: int, slots: int) -> float:
        """Seconds until one gets a slot with `ahead` before it, while all are taken; 0.0 while nothing is known."""
        return self.drained_in(ahead + 1, slots)

    def drained_in(self, waiting: int, slots: int) -> float:
        """Seconds until so many have got slots."""
        return self.mean_s * waiting / max(1, slots)

    def times_of(self, size: float) -> Times:
        """How long those of this size hold a slot."""
        times = self._by_size.get(_class_of(size))
        return times if times is not None and times.weight >= FEW else self._all


def _class_of(size: float) -> int:
    return int(size).bit_length()
