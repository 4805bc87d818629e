"""A time limit that tells a slow answer from a slow reader."""

import asyncio
from types import TracebackType
from typing import Self

from app.clock import Clock

LONG_PAST = 0.0


class Patience:
    """`asyncio.timeout`, with one grace: by how much the event loop itself was late, that much longer it waits, once.

    On a busy loop the timer may fire while the answer lies unread in the kernel. To call that a slow store would take
    a healthy one away in the very moment of overload.
    """

    __slots__ = ("_clock", "_due", "_limit", "_limit_s", "_timer")

    def __init__(self, limit_s: float, clock: Clock) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._due = clock() + limit_s
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._timer = asyncio.get_running_loop().call_later(self._limit_s, self._overdue)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, tb)

    def _overdue(self) -> None:
        grace_s = min(max(0.0, self._clock() - self._due), self._limit_s)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(grace_s, self._limit.reschedule, LONG_PAST)
