"""Who may enter, and how many are inside."""

import asyncio
from types import TracebackType
from typing import Self

from app.errors import Draining


class Admission:
    """As a block around a request's work. While draining nobody enters, and `empty` tells when all have left."""

    def __init__(self) -> None:
        self.inside = 0
        self.entered = 0
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def __enter__(self) -> Self:
        if self.draining:
            raise Draining(retry_after=1.0)
        self.inside += 1
        self.entered += 1
        self._empty.clear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.inside -= 1
        if self.inside == 0:
            self._empty.set()

    async def empty(self) -> None:
        await self._empty.wait()
