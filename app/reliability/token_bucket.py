"""A token bucket: full at first, refilled steadily. Nothing ticks: it is refilled when it is looked at."""

import math
from dataclasses import dataclass, field

from app.clock import Clock


@dataclass(slots=True)
class TokenBucket:
    capacity: float
    per_second: float
    clock: Clock
    _level: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._level = self.capacity
        self._at = self.clock()

    def level(self) -> float:
        """Below zero while more was used than was there. A clock that jumps back refills nothing, and takes nothing."""
        return self.level_at(self.clock())

    def level_at(self, now: float) -> float:
        passed = now - self._at
        self._at = now
        if passed > 0:
            level = self._level + passed * self.per_second
            self._level = level if level < self.capacity else self.capacity
        return self._level

    def take(self, n: float) -> float:
        """Take `n` and return 0.0; or take nothing and return the seconds to wait."""
        level = self.level()
        if n > level:
            return self.seconds_to(n)
        self._level = level - n
        return 0.0

    def draw(self, n: float) -> None:
        """What `level` has just said is there."""
        self._level -= n

    def put(self, n: float) -> None:
        """Give back `n`, never beyond full. Less than nothing takes what was used in excess, also below zero."""
        level = self.level_at(self.clock()) + n
        self._level = level if level < self.capacity else self.capacity

    def seconds_to(self, n: float) -> float:
        """Until the level is `n`, if nothing is taken meanwhile; infinite if it never will be."""
        if n > self.capacity:
            return math.inf
        missing = n - self.level()
        return seconds_for(missing, self.per_second)

    def resize(self, capacity: float, per_second: float) -> None:
        """What was half full stays half full, and what was empty stays empty."""
        share = self.level() / self.capacity if self.capacity else 0.0
        self.capacity, self.per_second = capacity, per_second
        self._level = share * capacity


def seconds_for(missing: float, per_second: float) -> float:
    if missing <= 0:
        return 0.0
    return missing / per_second if per_second else math.inf
