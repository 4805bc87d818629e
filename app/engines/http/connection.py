"""One TCP connection to an engine, and the answer that is arriving on it.

It turns bytes into the state of one answer, and knows nothing of time, of pools, or of what the answer means.
One reader waits for it to change, looks at the state, and waits again. It may leave word what to do with what comes in
the meantime: then nobody is woken for that.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, cast

import httptools

from app.errors import EngineLost, EngineNonsense, GatewayError


class Connection(asyncio.Protocol):
    __slots__ = (
        "_barren",
        "_keeps",
        "_listening",
        "_loop",
        "_max_header_bytes",
        "_on_lost",
        "_parser",
        "_pause_above",
        "_pieces",
        "_taken",
        "_transport",
        "_waiter",
        "begun",
        "complete",
        "fault",
        "headers",
        "heard",
        "idle_since",
        "open",
        "paused",
        "size",
        "status",
    )

    _transport: asyncio.Transport
    _loop: asyncio.AbstractEventLoop

    def __init__(self, max_header_bytes: int, on_lost: Callable[["Connection"], None]) -> None:
        self._max_header_bytes = max_header_bytes
        self._on_lost = on_lost
        self._parser: Any = None
        """It holds our methods: without one before and after, only the garbage collector would free us."""
        self._waiter: asyncio.Future[None] | None = None
        self._taken: Callable[[], bool] | None = None
        self.open = False
        self.idle_since = math.inf
        self.fault: GatewayError | None = None
        """Why nothing more will come. What came before it still counts: `complete` is to be looked at first."""
        self.clear()

    def clear(self) -> None:
        """Between answers: nothing is asked, nothing may come."""
        self._listening = False
        self._keeps = False
        self._barren = 0
        self._pause_above = 0
        self._pieces: list[bytes] = []
        self.size = 0
        """Bytes of body that wait for the reader."""
        self.headers: dict[bytes, bytes] = {}
        self.status = 0
        """0 until the final head is there."""
        self.heard = False
        """Anything came at all."""
        self.begun = False
        """The body has begun."""
        self.complete = False
        self.paused = False

    # --- for the reader -------------------------------------------------------------------------------------------

    def send(self, request: bytes, pause_above: int) -> None:
        self._listening = True
        self._pause_above = pause_above
        if self.fault is None:
            self._transport.write(request)

    def changed(self, taken: Callable[[], bool] | None = None) -> asyncio.Future[None]:
        """Done at the next read, or when the connection breaks. `taken` is asked first, if there is more body to come:
        whether this read is dealt with, and nobody needs to wake up for it."""
        self._taken = taken
        self._waiter = waiter = self._loop.create_future()
        return waiter

    @property
    def awaited(self) -> bool:
        """Someone waits, and nothing has come for them yet."""
        return self._waiter is not None and not self._waiter.done()

    def take(self) -> bytes:
        """The body so far, as one piece."""
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self.size = 0
        if self.paused:
            self.paused = False
            if self.fault is None:
                self._transport.resume_reading()
        return data

    @property
    def alive(self) -> bool:
        return self.fault is None and not self._transport.is_closing()

    @property
    def reusable(self) -> bool:
        """The answer is whole, the engine goes on, and on neither side is there a byte that belongs to no one."""
        return self._keeps and self.alive and self._transport.get_write_buffer_size() == 0

    def fail(self, error: GatewayError) -> None:
        """End it now, so that the engine notices too."""
        if self.fault is None:
            self.fault = error
        self._transport.abort()
        self._wake()

    def drop(self, error: GatewayError) -> None:
        """As `fail`, and all that has not been read is worth nothing any more."""
        self._pieces = []
        self.size = 0
        self.fault = error
        self.fail(error)

    def abort(self) -> None:
        self._transport.abort()

    async def aclose(self) -> None:
        """Abort, and wait until the socket is closed."""
        if self.open:
            self.abort()
        while self.open:
            await self.changed()

    # --- for the event loop ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by inheritance
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self.open = True

    def data_received(self, data: bytes) -> None:
        if not self._listening:
            self.fail(EngineNonsense(detail="bytes that belong to no answer"))
            return
        self.heard = True
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(EngineNonsense(detail=f"not HTTP: {error}"))
            return
        if self._listening:
            if self._barren > self._max_header_bytes:
                self.fail(EngineNonsense("The engine's headers are larger than the gateway accepts."))
            elif self.size > self._pause_above and not self.paused:
                self.paused = True
                self._transport.pause_reading()
        waiter, taken = self._waiter, self._taken
        if waiter is not None and (
            taken is None
            or self.complete
            or self.fault is not None
            or not self.size
            or waiter.done()  # by a reader that has just given up
            or not taken()
        ):
            self._wake()

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._ended(exc)
        self._on_lost(self)
        self._parser = None

    def _ended(self, exc: Exception | None) -> None:
        framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        if self._listening and self.status and not framed and exc is None and self.fault is None:
            self.on_message_complete()  # a body without a length ends where the connection does
        if self.fault is None:
            self.fault = EngineLost(detail=f"the connection was lost: {exc!r}" if exc else "it closed the connection")
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = self._taken = None
            if not waiter.done():
                waiter.set_result(None)

    # --- for the parser -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if not self._listening:
            raise ValueError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
        elif status >= 100:
            self.headers.clear()  # an interim answer
        else:
            raise ValueError("no such status")

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self.size += len(body)
        self._barren = 0
        self.begun = True

    def on_message_complete(self) -> None:
        if self.status:
            self._listening = False
            self.complete = True
            self._keeps = self._parser.should_keep_alive()
