"""Requests begin a few in each turn of the event loop. In between, the tokens of running streams go on: a thousand
requests that come at once would stop every stream for as long as it takes to begin them all.

Where other work makes turns long, more begin in each: if it were always few, they would wait the longer for it.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from app.clock import Clock

LEAST = 4
"""Half a millisecond of work. With fewer, looking for what else there is to do becomes a part of it that counts."""
MOST = 32
PER_S = 2_500
"""May begin whatever else there is to do: about a quarter of the loop's time."""

Begin = Callable[[], None]


class Turns:
    def __init__(self, clock: Clock, least: int = LEAST, most: int = MOST) -> None:
        self._clock = clock
        self._least, self._most = least, most
        self._may_begin = least
        """In this turn."""
        self._begun = 0
        """In this turn."""
        self._turned: float | None = None
        """When this turn began, if some waited then."""
        self._waiting: deque[Begin] = deque()

    def __len__(self) -> int:
        """So many have come, and not begun."""
        return len(self._waiting)

    def take(self, begin: Begin, loop: asyncio.AbstractEventLoop) -> None:
        """Now, or in one of the loop's next turns. Who came first begins first."""
        if self._begun >= self._may_begin:
            self._waiting.append(begin)
            return
        if not self._begun:
            loop.call_soon(self._next, loop)
        self._begun += 1
        begin()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = 0
        waiting = self._waiting
        if not waiting:
            self._turned, self._may_begin = None, self._least
            return
        now, before = self._clock(), self._turned
        took_s = now - before if before is not None else 0.0
        self._turned, self._may_begin = now, min(max(int(took_s * PER_S), self._least), self._most)
        for _ in range(min(len(waiting), self._may_begin)):
            self.take(waiting.popleft(), loop)
