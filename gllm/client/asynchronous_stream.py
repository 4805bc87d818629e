"""A stream, read by a task: resumed when its connection breaks, and given up when its reader leaves."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, Self, TypeVar

import httpx

from gllm.client.answers import Read
from gllm.client.call import Call
from gllm.client.errors import RemoteError, of_answer, translated
from gllm.client.events import Progress

T = TypeVar("T")

Send = Callable[[Call, int], Awaitable[httpx.Response]]
"""A request for what comes after so many events, answered as far as its head."""
GiveUp = Callable[[Call], Awaitable[None]]


class Reading:
    """Over all the connections that it takes. A block: left early, it stops the engine's work too."""

    def __init__(self, call: Call, send: Send, give_up: GiveUp, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._call = call
        self._send = send
        self._give_up = give_up
        self._retrying = call.retrying_async(sleep)
        self._progress = Progress()
        self._answer: httpx.Response | None = None
        self._received: AsyncIterator[bytes] | None = None
        self._asked = False

    async def next(self) -> list[bytes] | None:
        """Some events, possibly none; `None` at the end."""
        if not self._progress.over:
            return await self._retrying(self._attempt)
        await self._finish()
        if self._progress.failure is not None:
            raise self._progress.failure
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            await self._hang_up()
        finally:
            if self._asked and not self._progress.over and not isinstance(error, RemoteError):
                await self._give_up(self._call)

    async def _attempt(self) -> list[bytes]:
        try:
            async with self._call.in_time():
                with translated():
                    received = await anext(self._received or await self._open(), None)
        except RemoteError as error:
            await self._hang_up()
            raise self._progress.broken(error) from error.__cause__
        if received is None:
            await self._hang_up()
            raise self._progress.broken()
        self._call.progressed()
        return self._progress.take(received)

    async def _open(self) -> AsyncIterator[bytes]:
        self._asked = True
        answer = self._answer = await self._send(self._call, self._progress.seen)
        if answer.status_code != 200:
            raise of_answer(answer.status_code, answer.headers, await answer.aread())
        headers = answer.headers
        self._progress.opened(200, headers.get("content-type", ""), headers.get("x-request-id"))
        self._received = answer.aiter_bytes()
        return self._received

    async def _finish(self) -> None:
        """The connection's own end comes right after the stream's. Leaving before it would look like a hang-up."""
        if self._received is not None:
            with suppress(httpx.HTTPError, RemoteError):
                async with self._call.in_time():
                    async for _ in self._received:
                        pass
        await self._hang_up()

    async def _hang_up(self) -> None:
        answer, self._answer, self._received = self._answer, None, None
        if answer is not None:
            await answer.aclose()


class AsyncStream(Generic[T]):
    """An iterator of pieces. As a context manager, or after `aclose()`, it stops the engine's work when left early."""

    def __init__(self, reading: Reading, read: Read[T]) -> None:
        self._pieces = _pieces(reading, read)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


async def _pieces(reading: Reading, read: Read[T]) -> AsyncGenerator[T, None]:
    """A generator, so that the loop closes it for whoever leaves without a word."""
    async with reading:
        while (events := await reading.next()) is not None:
            for event in events:
                if piece := read(event):
                    yield piece
