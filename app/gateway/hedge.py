"""A stream begun on one replica or, if that is unusually slow to begin, on two: whoever begins first goes on.

Off unless HEDGE_SHARE says otherwise: a second try is work done twice. The one that loses is aborted, and nobody pays.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from app.cluster.replica import Lease
from app.errors import EngineError
from app.generation import Call


class Try:
    """One replica's attempt at a stream, as far as its first block."""

    def __init__(self, lease: Lease, call: Call) -> None:
        self.lease = lease
        self.first = b""
        self.blocks: AsyncIterator[bytes]
        self._call = call
        self._open = AsyncExitStack()

    async def begin(self) -> Self:
        """Until the first block is there. Whatever else ends it leaves nothing open."""
        try:
            self.blocks = await self._open.enter_async_context(self.lease.replica.engine.open(self._call))
            self.first = await anext(self.blocks, b"")
        except BaseException:
            await self._open.aclose()
            raise
        return self

    async def aclose(self) -> None:
        await self._open.aclose()


class Race:
    """As a block: inside it `winner` has begun. Leaving ends whatever is still open, and gives the second slot back."""

    def __init__(
        self, first: Lease, call: Call, after_s: float, second: Callable[[], tuple[Lease, Call] | None]
    ) -> None:
        """`second`: another replica, and the call as it is to be told there, if there may be a second try."""
        self.winner: Try
        self._first = first
        self._call = call
        self._after_s = after_s
        self._take_second = second
        self._second: Lease | None = None
        self._running: dict[asyncio.Task[Try], Lease] = {}

    async def __aenter__(self) -> Self:
        try:
            self.winner = await self._won()
        except BaseException:
            await self._leave()
            raise
        await self._stop_losers()
        if self._second is not None and self.winner.lease is self._first:
            self._second.release()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.winner.aclose()
        await self._leave()

    async def _won(self) -> Try:
        self._start(self._first, self._call)
        done, _ = await asyncio.wait(self._running, timeout=self._after_s)
        if not done and (second := self._take_second()) is not None:
            self._second, call = second
            self._start(self._second, call)
        while True:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                lease = self._running.pop(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not self._running or not isinstance(error, EngineError):
                    raise error
                if error.blames_engine:
                    lease.failed()

    def _start(self, lease: Lease, call: Call) -> None:
        task = asyncio.get_running_loop().create_task(Try(lease, call).begin())
        self._running[task] = lease

    async def _stop_losers(self) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        for task in self._running:
            if not task.cancelled() and task.exception() is None:  # it began in the same moment
                await task.result().aclose()
        self._running.clear()

    async def _leave(self) -> None:
        await self._stop_losers()
        if self._second is not None:
            self._second.release()
