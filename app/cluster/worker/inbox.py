"""What a worker is to do next. There is at most one such thing, and whatever it is doing makes way for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.cluster.control import Order, Released


@dataclass(frozen=True, eq=False)
class Change:
    order: Order | None
    """What is to be served from now on; `None`: nothing."""
    drained_by: float
    """On the worker's clock: until then running answers may go on."""
    released: "asyncio.Future[Released]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Of a change to nothing: how it went."""


class Inbox:
    def __init__(self) -> None:
        self.open: Change | None = None
        """From its arrival until it has succeeded or failed."""
        self._there = asyncio.Event()
        self._block: asyncio.Timeout | None = None

    @property
    def holds_something(self) -> bool:
        """Nobody has begun with it yet."""
        return self._there.is_set()

    def put(self, change: Change) -> None:
        """What was to be done so far is not wanted any more."""
        self.open = change
        if not self._there.is_set():
            self._there.set()
            if self._block is not None:
                self._block.reschedule(0.0)

    async def take(self) -> Change:
        await self._there.wait()
        self._there.clear()
        assert self.open is not None
        return self.open

    def settle(self) -> None:
        self.open = None

    @asynccontextmanager
    async def making_way(self) -> AsyncIterator[None]:
        """A block that is left, wherever it stands, as soon as there is something else to do."""
        try:
            async with asyncio.timeout(0.0 if self.holds_something else None) as self._block:
                yield
        except TimeoutError:
            if not self.holds_something:
                raise
        finally:
            self._block = None
