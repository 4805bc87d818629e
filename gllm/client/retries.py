"""How often, how soon and how many together: the limits within which a client sends something again."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(frozen=True)
class Retries:
    """For each call: at most `most`, after pauses that double and are drawn at random (full jitter).

    For all calls of a client together: `least_per_s`, and `share` of a retry for each call that is made. A retry that
    would exceed this waits for its turn; if that is farther off than the longest pause, there is none.
    """

    most: int = 8
    first_pause_s: float = 0.5
    longest_pause_s: float = 20.0
    share: float = 0.2
    least_per_s: float = 1.0
    jitter: Callable[[], float] = random.random
    clock: Clock = time.monotonic

    def pause_after(self, attempt: int) -> float:
        """Attempts count from 1. The pause of a server that says no other."""
        return self.jitter() * min(self.longest_pause_s, self.first_pause_s * 2.0 ** (attempt - 1))


class RetryBudget:
    """Retries that all calls of a client share, so that a server in trouble gets little more than it had before."""

    SAVED_S = 10.0
    """As much as this time brings by itself may be saved up, and is there at the beginning."""

    def __init__(self, limits: Retries) -> None:
        self._limits = limits
        self._most = max(1.0, limits.least_per_s * self.SAVED_S)
        self._level = self._most
        """Below zero are those who wait for their turn."""
        self._at = limits.clock()
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """A call was made."""
        with self._lock:
            self._refill(self._limits.share)

    def withdraw(self) -> float | None:
        """Take one retry; the seconds until its turn. `None`, and nothing is taken, if that is too far off."""
        with self._lock:
            self._refill()
            missing = 1.0 - self._level
            if missing > 0:
                per_s = self._limits.least_per_s
                if per_s <= 0 or missing / per_s > self._limits.longest_pause_s:
                    return None
            self._level -= 1.0
            return max(0.0, missing / self._limits.least_per_s) if missing > 0 else 0.0

    def _refill(self, more: float = 0.0) -> None:
        now = self._limits.clock()
        passed, self._at = now - self._at, now
        self._level = min(self._most, self._level + passed * self._limits.least_per_s + more)
