"""Time limits for very many waits at the price of one timer.

A timer for each event of each stream would cost more than relaying it. A wait writes down when it is overdue,
which is one attribute; a sweep every tick finds those that are. Limits are late by at most one tick.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from app.clock import Clock

TICK_S = 0.05
SLICE = 4_000
"""So many are looked at in one turn of the event loop, half a millisecond's worth."""
STOOD_STILL_S = 0.25
"""So late a turn says that this process, or all of the machine, has stood still: suspended, moved to another host."""
GRACE_S = 2.0
"""At most so long after that nobody's time is over: what came meanwhile is heard, and who stood still too goes on."""
REST = 20
"""Of the time it takes to look at all, so many times are left between. That makes ticks longer from about 10,000 on."""


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
        self._look_at(self._waits)

    async def run(self) -> None:
        while True:
            began = self.clock()
            waits = list(self._waits)
            for first in range(0, len(waits), SLICE):
                self._look_at(waits[first : first + SLICE])
                await asyncio.sleep(0)
            rest_s = max(TICK_S, REST * (self.clock() - began))
            wakes_at = self.clock() + rest_s
            await asyncio.sleep(rest_s)
            late_s = self.clock() - wakes_at
            if late_s > STOOD_STILL_S:
                await asyncio.sleep(min(late_s, GRACE_S))

    def _look_at(self, waits: Iterable[Wait]) -> None:
        now = self.clock()
        for wait in [each for each in waits if each.due <= now]:
            if wait in self._waits:  # the end of another may have ended it
                wait.expire(now)
