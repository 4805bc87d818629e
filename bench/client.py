"""Kept connections to one server, and what is seen on them: the least HTTP client that keeps exact time.

It reads what it needs and nothing more, because it shares its processors with what it measures.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter

import httptools

_A_TOKEN = re.compile(rb'"content": ?"[^"]')
"""An event of a stream that brings text; the first one usually brings a role and nothing else."""

_HEADERS_KEPT = (b"retry-after", b"x-gllm-reason", b"idempotent-replayed")


class End(StrEnum):
    DONE = "done"
    REFUSED = "refused"
    """An honest error: a status that is not 200, with a body."""
    BROKEN = "broken"
    """The connection ended before the answer did, or a stream without its `[DONE]`."""
    HUNG_UP = "hung up"
    """By us, on purpose."""
    UNANSWERED = "unanswered"
    """It was still open when everything had to be over."""


@dataclass(slots=True)
class Seen:
    """What came of one request. Times count from the moment at which it was meant to be sent."""

    began: float
    """That moment, on the clock `perf_counter`."""
    late_s: float = 0.0
    """How much later it was sent."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    first_token_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    """Between arrivals of tokens; several may come in one."""
    took_s: float = 0.0
    end: End | None = None
    body: bytes = b""

    def since(self) -> float:
        return perf_counter() - self.began


OnEnd = Callable[[Seen], None]


class Exchange:
    """One request on its way, whichever connection it goes by."""

    __slots__ = ("_last_token_at", "_on_end", "_tail", "connection", "keeps_body", "request", "seen")

    def __init__(self, request: bytes, seen: Seen, on_end: OnEnd, *, keeps_body: bool = False) -> None:
        self.request = request
        self.seen = seen
        self.keeps_body = keeps_body
        self.connection: Connection | None = None
        self._on_end = on_end
        self._last_token_at = 0.0
        self._tail = b""

    def hang_up(self, *, reset: bool) -> None:
        """Also if it is still connecting."""
        if self.seen.end is None:
            self.ended(End.HUNG_UP)
            if self.connection is not None:
                self.connection.leave(reset=reset)

    def give_up(self) -> None:
        if self.seen.end is None:
            self.ended(End.UNANSWERED)
            if self.connection is not None:
                self.connection.leave(reset=True)

    def ended(self, how: End) -> None:
        if self.seen.end is None:
            self.seen.end = how
            self.seen.took_s = self.seen.since()
            self._on_end(self.seen)

    # --- what the connection tells --------------------------------------------------------------------------------

    def headed(self, status: int, headers: dict[str, str]) -> None:
        self.seen.status, self.seen.headers = status, headers

    def got(self, part: bytes, *, streamed: bool) -> None:
        if self.keeps_body:
            self.seen.body += part
        if not streamed:
            return
        if _A_TOKEN.search(part):
            now = perf_counter()
            if self.seen.first_token_s is None:
                self.seen.first_token_s = now - self.seen.began
            else:
                self.seen.gaps_s.append(now - self._last_token_at)
            self._last_token_at = now
        self._tail = (self._tail + part)[-16:]

    def completed(self, *, streamed: bool) -> None:
        if self.seen.status != 200:
            self.ended(End.REFUSED)
        elif streamed and not self._tail.endswith(b"data: [DONE]\n\n"):
            self.ended(End.BROKEN)
        else:
            self.ended(End.DONE)


class Connection(asyncio.Protocol):
    """One exchange after the other."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._streamed = False

    def ask(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.connection = self
        self.transport.write(exchange.request)

    def leave(self, *, reset: bool) -> None:
        self._exchange = None
        if reset:
            self.transport.abort()
        else:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]  # uvloop's are one class
        self._pool.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)
        if self._exchange is not None:
            self._exchange.ended(End.BROKEN)

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._headers = {}
        self._streamed = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if name in _HEADERS_KEPT:
            self._headers[name.decode()] = value.decode()
        elif name == b"content-type":
            self._streamed = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        if self._exchange is not None:
            self._exchange.headed(self._parser.get_status_code(), self._headers)

    def on_body(self, part: bytes) -> None:
        if self._exchange is not None:
            self._exchange.got(part, streamed=self._streamed)

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange.completed(streamed=self._streamed)
        if self._parser.should_keep_alive() and not self.transport.is_closing():
            self._pool.idle.append(self)
        else:
            self.transport.close()


class Pool:
    """All connections to one port. Whoever asks gets an idle one, or a new one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.idle: list[Connection] = []
        self.open: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    async def prepare(self, count: int) -> None:
        """Have so many open: that connecting takes time is not what is measured."""
        for _ in range(count - len(self.idle)):
            self.idle.append(await self._connect())

    def ask(self, exchange: Exchange) -> None:
        if self.idle:
            self.idle.pop().ask(exchange)
            return
        task = asyncio.get_running_loop().create_task(self._connect_and_ask(exchange))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def lost(self, connection: Connection) -> None:
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    async def aclose(self) -> None:
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in list(self.open):
            connection.leave(reset=False)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
        return connection

    async def _connect_and_ask(self, exchange: Exchange) -> None:
        try:
            connection = await self._connect()
        except OSError:
            exchange.ended(End.BROKEN)
            return
        if exchange.seen.end is None:
            connection.ask(exchange)
        else:
            self.idle.append(connection)
