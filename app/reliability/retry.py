"""Whether to try again, after what pause, and how often in all. Arithmetic only; who retries is `dispatch`."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from app.clock import Clock
from app.errors import GatewayError

SLICES = 10


@dataclass(frozen=True)
class Retry:
    attempts: int = 3
    first_pause_s: float = 0.02
    longest_pause_s: float = 1.0
    jitter: Callable[[], float] = random.random

    def pause_after(self, attempt: int, error: GatewayError, left_s: float) -> float | None:
        """Seconds to wait before the next attempt, or `None` to give up: full jitter, within the deadline."""
        if not error.retryable or attempt >= self.attempts:
            return None
        pause = self.jitter() * min(self.longest_pause_s, self.first_pause_s * 2 ** (attempt - 1))
        return pause if pause < left_s else None


class RetryBudget:
    """Second tries that are work on top of work, as a share of recent first ones, so that a fleet in trouble does not
    get twice as much.

    `least_per_s` lets few requests have retries too. Finagle's budget: a first try brings `share` of a retry, which
    is forgotten after `ttl_s`, and so is each retry that was made.
    """

    def __init__(self, share: float, clock: Clock, least_per_s: float = 1.0, ttl_s: float = 10.0) -> None:
        self.denied = 0
        """Retries that there was nothing left for."""
        self._share = share
        self._clock = clock
        self._slice_s = ttl_s / SLICES
        self._reserve = least_per_s * (ttl_s - self._slice_s)
        """The window may be short of its oldest slice, and then allows no more than that."""
        self._firsts = [0] * SLICES
        self._retries = [0] * SLICES
        self._latest = int(clock() / self._slice_s)

    @property
    def off(self) -> bool:
        """There are no retries at all."""
        return self._share <= 0

    def deposit(self) -> None:
        """A first try was made."""
        self._firsts[self._now()] += 1

    def withdraw(self) -> bool:
        """Take one retry, if there is one."""
        if self.off:
            return False
        now = self._now()
        if self._left(SLICES) < 1:
            self.denied += 1
            return False
        self._retries[now] += 1
        return True

    @property
    def left(self) -> int | None:
        """How many may still be made; `None` where there are none at all. Changes nothing, so any thread may ask."""
        if self.off:
            return None
        begun = int(self._clock() / self._slice_s) - self._latest
        return max(0, int(self._left(SLICES - max(0, begun))))

    def _left(self, slices: int) -> float:
        """By so many of the latest slices."""
        kept = [(self._latest - ago) % SLICES for ago in range(slices)]
        firsts, retries = sum(self._firsts[each] for each in kept), sum(self._retries[each] for each in kept)
        return self._share * firsts + self._reserve - retries

    def _now(self) -> int:
        """The slice of now, empty if it has just begun."""
        number = int(self._clock() / self._slice_s)
        if number > self._latest:
            for passed in range(max(self._latest, number - SLICES) + 1, number + 1):
                self._firsts[passed % SLICES] = self._retries[passed % SLICES] = 0
            self._latest = number
        return self._latest % SLICES
