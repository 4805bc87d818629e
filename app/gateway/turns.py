"""Requests begin a few in each turn of the event loop. In between, the tokens of running streams go on: a thousand
requests that come at once would stop every stream for as long as it takes to begin them all.
"""

import asyncio
from collections import deque
from collections.abc import Callable

MOST = 16
"""About two milliseconds of work. With fewer, looking for what else there is to do becomes a part of it that counts."""

Begin = Callable[[], None]


class Turns:
    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._begun = 0
        """In this turn."""
        self._waiting: deque[Begin] = deque()

    def __len__(self) -> int:
        """So many have come, and not begun."""
        return len(self._waiting)

    def take(self, begin: Begin, loop: asyncio.AbstractEventLoop) -> None:
        """Now, or in one of the loop's next turns. Who came first begins first."""
        if self._begun >= self._most:
            self._waiting.append(begin)
            return
        if not self._begun:
            loop.call_soon(self._next, loop)
        self._begun += 1
        begin()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = 0
        waiting = self._waiting
        for _ in range(min(len(waiting), self._most)):
            self.take(waiting.popleft(), loop)
