"""uvicorn's HTTP protocol with what ASGI cannot say: limits on a request's head, JSON errors before there is a request,
and a direct word when a connection is lost.
"""

import math
import random
from asyncio import Transport
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.errors import BodyTooSlow, GatewayError, HeadersTooLarge, MalformedHttp
from app.gateway.answers import headers_of
from app.gateway.edge import CONNECTION
from app.reliability.watch import Watch
from app.wire.errors import error_json, row_of

MAX_HEADERS = 100


class GatewayProtocol(HttpToolsProtocol):
    """One connection. From a head's first byte to its last it is an open wait: nobody may drip headers for ever."""

    watch: Watch
    max_head_bytes: int
    head_timeout_s: float

    on_lost: Callable[[], None] | None = None
    due = math.inf
    _in_head = True
    _head_bytes = 0
    _refused = False

    @classmethod
    def configured(cls, watch: Watch, max_head_bytes: int, head_timeout_s: float) -> type["GatewayProtocol"]:
        """uvicorn makes the connections itself, so what they need travels on a class."""
        fixed = {"watch": watch, "max_head_bytes": max_head_bytes, "head_timeout_s": head_timeout_s}
        return cast(type[GatewayProtocol], type(cls.__name__, (cls,), fixed))

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        self.due = self.watch.clock() + self.head_timeout_s
        self.watch.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.discard(self)
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def abort(self) -> None:
        """Close without sending what a stalled reader has not taken."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refused:
            return
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # answered as plain HTTP/1.1; what follows would be another protocol's
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, GatewayError) else MalformedHttp())
        else:
            if self._in_head and self._head_bytes > self.max_head_bytes:
                self._refuse(HeadersTooLarge())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope = cast(dict[str, Any], self.scope)
        scope["extensions"] = {CONNECTION: self}
        if not self._in_head:  # kept alive: the next head begins, with what of it came in this read
            self._in_head = True
            self.due = self.watch.clock() + self.head_timeout_s

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            raise HeadersTooLarge
        if self._head_bytes > self.max_head_bytes:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self.max_head_bytes:
                raise HeadersTooLarge
        self._in_head = False
        self._head_bytes = 0
        self.due = math.inf
        super().on_headers_complete()

    def expire(self, now: float) -> None:
        """The head did not arrive in time. Whoever never sent a byte of it is not owed an answer."""
        if self._head_bytes:
            self._refuse(BodyTooSlow("The request's head did not arrive in time."))
        else:
            self.transport.abort()

    def _refuse(self, error: GatewayError) -> None:
        """Answer what never became a request, and close. Nothing is written into an answer that has begun."""
        self._refused = True
        self.due = math.inf
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
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
        self.transport.close()
