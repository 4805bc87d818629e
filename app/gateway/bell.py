"""An event for the one who waits for it: asyncio's, without the queue that it keeps for many."""

import asyncio


class Bell:
    """Two are made for each connection and request, and most are never waited for."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self, *, rung: bool = False) -> None:
        self._rung = rung
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        return self._rung

    def set(self) -> None:
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        self._rung = False

    async def wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("Somebody waits for this bell already.")
        try:
            while not self._rung:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        finally:
            self._waiter = None
