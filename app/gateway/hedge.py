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


Lost = Callable[[Lease, EngineError], None]


class Race:
    """As a block: inside it `winner` has begun, and is alone. Its lease is the caller's, whichever it is.

    What is raised is the first one's failure. Every other is told to `lost`, before its lease ends.
    """

    def __init__(
        self, first: Lease, call: Call, after_s: float, second: Callable[[], tuple[Lease, Call] | None], lost: Lost
    ) -> None:
        """`second`: another replica, and the call as it is to be told there, if there may be a second try."""
        self.winner: Try
        self._first = first
        self._call = call
        self._after_s = after_s
        self._take_second = second
        self._lost = lost
        self._second: Lease | None = None
        self._running: dict[asyncio.Task[Try], Lease] = {}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as unless_won:
            unless_won.callback(self._release_second)
            unless_won.push_async_callback(self._stop_losers)
            self.winner = await self._won()
            unless_won.push_async_callback(self.winner.aclose)
            await self._stop_losers()
            unless_won.pop_all()
        if self.winner.lease is self._first:
            self._release_second()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.winner.aclose()

    async def _won(self) -> Try:
        self._start(self._first, self._call)
        done, _ = await asyncio.wait(self._running, timeout=self._after_s)
        if not done and (second := self._take_second()) is not None:
            self._second, call = second
            self._start(self._second, call)
        failure: EngineError | None = None
        while self._running:
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                lease = self._running.pop(task)
                try:
                    won = task.result()
                except EngineError as error:
                    if lease is self._first:
                        failure = error
                    else:
                        self._lost(lease, error)
                else:
                    if failure is not None:
                        self._lost(self._first, failure)
                    return won
        assert failure is not None, "the first has not won"
        raise failure

    def _start(self, lease: Lease, call: Call) -> None:
        task = asyncio.get_running_loop().create_task(Try(lease, call).begin())
        self._running[task] = lease

    async def _stop_losers(self) -> None:
        """Each is told to stop, also if a cancel ends the waiting for one of them."""
        async with AsyncExitStack() as stops:
            for task in self._running:
                if not task.cancelling():
                    task.cancel()
                stops.push_async_callback(_stopped, task)

    def _release_second(self) -> None:
        if self._second is not None:
            self._second.release()


async def _stopped(task: asyncio.Task[Try]) -> None:
    if not task.done():
        await asyncio.wait((task,))
    if not task.cancelled() and task.exception() is None:  # it began in the same moment
        await task.result().aclose()
