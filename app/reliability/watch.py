"""Time limits for very many waits at the price of one timer.

A timer for each event of each stream would cost more than relaying it. A wait writes down when it is overdue,
which is one attribute; a single sweep every tick finds those that are. Limits are late by at most one tick.
"""

import asyncio
from typing import Protocol

from app.clock import Clock


class Wait(Protocol):
    due: float
    """When it is overdue, on the watch's clock; `math.inf` while nothing is awaited."""

    def expire(self, now: float) -> None:
        """End the wait with the error that fits. Called once per sweep for as long as it stays overdue."""
        ...


class Watch:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._waits: dict[Wait, None] = {}
        """A set that keeps its order: the longest there end first, and a run can be repeated."""

    def __len__(self) -> int:
        return len(self._waits)

    def add(self, wait: Wait) -> None:
        self._waits[wait] = None

    def discard(self, wait: Wait) -> None:
        self._waits.pop(wait, None)

    def sweep(self) -> None:
        now = self.clock()
        for wait in [each for each in self._waits if each.due <= now]:
            wait.expire(now)

    async def run(self, tick_s: float = 0.05) -> None:
        while True:
            await asyncio.sleep(tick_s)
            self.sweep()
