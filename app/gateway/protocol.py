"""uvicorn's HTTP protocol with what ASGI cannot say: limits on a request's head, JSON errors before there is a request,
and a direct word when a connection is lost.
"""

import math
import random
from asyncio import Transport
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.errors import BodyTooSlow, GatewayError, HeadersTooLarge, MalformedHttp, TooManyConnections
from app.gateway.answers import headers_of
from app.gateway.bell import Bell
from app.gateway.connections import Connections
from app.gateway.cycle import Cycle
from app.gateway.edge import CLIENT
from app.gateway.turns import Turns
from app.reliability.watch import Watch
from app.wire.errors import error_json, row_of

ASGI = {"version": "3.0", "spec_version": "2.3"}
MAX_HEADERS = 100
LINGER_S = 2.0
"""How long a client may go on sending after its last answer."""
TARGETS = 256
"""Request targets that are remembered, as nearly all requests have one of a few."""


class GatewayProtocol(HttpToolsProtocol):
    """One connection. From a head's first byte to its last it is an open wait: nobody may drip headers for ever. So it
    is between an answer and the next head: nobody keeps a connection for nothing."""

    # Beside uvicorn's own attributes: of more than thirty Python would keep a table for each connection.
    __slots__ = ("_answered", "_head_bytes", "_in_head", "_refused", "due", "url")

    watch: Watch
    turns: Turns
    crowd: Connections
    max_head_bytes: int
    head_timeout_s: float
    cycle: Any
    pipeline: Any

    @classmethod
    def configured(
        cls, watch: Watch, turns: Turns, connections: Connections, max_head_bytes: int, head_timeout_s: float
    ) -> type["GatewayProtocol"]:
        """uvicorn makes the connections itself, so what they need travels on a class."""
        fixed = {
            "watch": watch,
            "turns": turns,
            "crowd": connections,
            "max_head_bytes": max_head_bytes,
            "head_timeout_s": head_timeout_s,
        }
        return cast(type[GatewayProtocol], type(cls.__name__, (cls,), fixed))

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self.flow._is_writable_event = cast(Any, Bell(rung=True))
        self.pipeline = []  # as a deque it would be the largest thing that a connection has
        self._answered: Cycle | None = None
        """The request that is being answered. It is not the last that has come, if there are some behind it."""
        self._in_head = True
        self._head_bytes = 0
        self._refused = False
        self.crowd.come()
        if not self.crowd.too_many:
            self._waits(self.head_timeout_s)
        elif self.crowd.refuse():
            self._refuse(TooManyConnections(retry_after=1.0))
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.gone()
        self.watch.discard(self)
        super().connection_lost(exc)
        if self._answered is not None:
            self._answered.lost()

    def _answer_is_last(self) -> None:
        self._refused = True
        self.cycle.transport = _Lingering(self.transport, self._linger)

    def _linger(self) -> None:
        self.transport.write_eof()
        if self.cycle is not None:
            self.cycle.transport = self.transport  # it is over, and would hold us as we hold it
        self._in_head, self._head_bytes = True, 0
        self._waits(LINGER_S)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, GatewayError) else MalformedHttp())
        else:
            if self._in_head and self._head_bytes > self.max_head_bytes:
                self._refuse(HeadersTooLarge())

    def _decline(self, rest: bytes) -> None:
        """An upgrade (Java's client offers one with every first request) is declined by answering as if not offered.

        The parser has left the body alone, as another protocol's; it is read again without the offer.
        """
        if self.parser.get_method() == b"CONNECT":
            self._refuse(MalformedHttp())
            return
        kept = [(name, value) for name, value in self.headers if name not in (b"upgrade", b"connection")]
        head = b"".join(b"%b: %b\r\n" % header for header in kept)
        request_line = b"%b %b HTTP/1.1\r\n" % (self.parser.get_method(), self.url)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(request_line + head + b"\r\n" + rest)

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body = cycle.body + body if cycle.body else body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade() and not self.cycle.response_complete:
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        if not self._in_head:  # kept alive: the next head begins, with what of it came in this read
            self._in_head = True
            self._waits(self.head_timeout_s)

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            raise HeadersTooLarge
        if self._head_bytes > self.max_head_bytes:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self.max_head_bytes:
                raise HeadersTooLarge
        if self.parser.should_upgrade():
            return
        self._in_head = False
        self._head_bytes = 0
        self._waits_no_more()
        self._begin()

    def _begin(self) -> None:
        """What uvicorn does here, with a cycle of ours; without what we have switched off."""
        parser = self.parser
        version = parser.get_http_version()
        is_old = version == "1.0"
        method = parser.get_method().decode("ascii")
        path, raw_path, query = _target(self.url)
        before = self.cycle
        cycle = self.cycle = Cycle(
            method,
            self.transport,
            self.flow,
            self.server_state.default_headers,
            self.on_response_complete,
            self._answer_is_last,
            began=self.watch.clock(),
            expects_100=self.expect_100_continue and not is_old,
            keep_alive=not is_old and parser.should_keep_alive(),
            chunks=not is_old,
        )
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": method,
            "scheme": self.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": self.root_path,
            "headers": self.headers,
            "client": self.client,
            "server": self.server,
            "state": self.app_state.copy(),
            "extensions": {CLIENT: cycle},
        }
        if before is None or before.response_complete:
            self._start(cycle, scope)
        else:  # pipelined: it waits for its turn
            self.flow.pause_reading()
            self.pipeline.append((cycle, scope))

    def _start(self, cycle: Cycle, scope: dict[str, Any]) -> None:
        self._answered = cycle

        def begin() -> None:
            task = cycle.task = self.loop.create_task(cycle.run(self.app, scope, self.tasks))
            self.tasks.add(task)

        self.turns.take(begin, self.loop)

    def on_response_complete(self) -> None:
        """As uvicorn does, without a timer for each answer that nearly always is for nothing."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start(*self.pipeline.pop(0))
        elif not self._in_head:
            self._waits(self.timeout_keep_alive)

    def _waits(self, limit_s: float) -> None:
        """It is the client's turn, and it has this long."""
        self.due = self.watch.clock() + limit_s
        self.watch.add(self)

    def _waits_no_more(self) -> None:
        self.due = math.inf
        self.watch.discard(self)

    def expire(self, now: float) -> None:
        """The head did not arrive in time. Whoever never sent a byte of it is not owed an answer."""
        if not self._in_head:
            self._waits_no_more()
            self.transport.close()
        elif self._head_bytes:
            self._refuse(BodyTooSlow("The request's head did not arrive in time."))
        else:
            self.transport.abort()

    def _refuse(self, error: GatewayError) -> None:
        """Answer what never became a request, and close. Nothing is written into an answer that has begun."""
        self._refused = True
        self._waits_no_more()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.started or not cycle.more_body:  # an earlier request on this connection waits for its answer
                self.transport.abort()
                return
            cycle.disconnected = True  # its head was well, its body is not: it ends here
            cycle.message_event.set()
        body = error_json(error)
        headers = [
            *headers_of(error),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", b"req-%024x" % random.getrandbits(96)),
            (b"connection", b"close"),
        ]
        head = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[row_of(error).status] + head + b"\r\n" + body)
        self._linger()


class _Lingering:
    """A transport that says goodbye, and lets the client finish its sentence before it closes."""

    def __init__(self, transport: Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


@lru_cache(TARGETS)
def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Its path, once more as it came, and what stands behind the question mark."""
    parsed = httptools.parse_url(url)
    path = parsed.path.decode("ascii")
    return unquote(path) if "%" in path else path, parsed.path, parsed.query or b""
