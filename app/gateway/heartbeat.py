"""Whether the event loop turns, and how late it is: written by the loop itself, read by another thread."""

import asyncio
from collections.abc import Awaitable, Callable

from app.clock import Clock

EVERY_S = 0.25


class Heartbeat:
    def __init__(
        self,
        clock: Clock,
        on_lag: Callable[[float], None] = lambda seconds: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._on_lag = on_lag
        self._sleep = sleep
        self._due = clock() + EVERY_S

    async def run(self) -> None:
        while True:
            self._due = self._clock() + EVERY_S
            await self._sleep(EVERY_S)
            self._on_lag(self.late_s)

    @property
    def late_s(self) -> float:
        """By how much the next beat is overdue."""
        return max(0.0, self._clock() - self._due)
