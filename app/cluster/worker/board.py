"""Where a worker's status stands: whoever wants to know looks, and a look may wait for a change."""

import asyncio
from typing import Any

import msgspec

from app.cluster.control import Status, WorkerState


class Board:
    def __init__(self, first: Status) -> None:
        self.now = first
        self._changed = asyncio.Event()

    def change(self, **fields: Any) -> None:
        """The words of `Status`; what stays as it was is no change."""
        after: Status = msgspec.structs.replace(self.now, **fields)
        if after != self.now:
            self.now = msgspec.structs.replace(after, version=self.now.version + 1)
            self._changed.set()
            self._changed = asyncio.Event()

    async def look(self, after: int, wait_s: float) -> Status:
        """After a worker's last word nobody waits for another one."""
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                while self.now.version == after and self.now.state is not WorkerState.STOPPED:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.now
