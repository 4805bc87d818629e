"""Where answers go: the client's side of the connection, as ASGI messages."""

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from app.clock import Clock
from app.errors import Draining, GatewayError, RateLimited, WrongMethod
from app.gateway.lifeline import Direct, Lifeline
from app.generation import Route
from app.telemetry.record import Record
from app.wire.answers import end_of
from app.wire.errors import error_event, error_json, row_of
from app.wire.limits import limit_headers

Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class Sink(Protocol):
    """What the way through writes to. The first write is the commit point: until then any answer is possible."""

    committed: bool

    def also(self, headers: Headers) -> None:
        """Say this too in the answer's head, whatever the answer is."""
        ...

    async def write(self, block: bytes) -> None: ...

    def offer(self, block: bytes, *, last: bool) -> bool:
        """Write it now, if that needs no waiting. Otherwise nothing is written, and `write` is there. `last`: the
        stream's proper end is in it."""
        ...

    async def end(self) -> None: ...

    async def fail(self, error: GatewayError) -> None:
        """Say what went wrong: as an honest answer before the commit point, as the stream's last event after it."""
        ...


class Answer:
    """One JSON body, written once and whole.

    A write may be cut at any time, by a deadline or by a drain. What the server has not taken then was never written.
    """

    __slots__ = (
        "_also",
        "_asgi_send",
        "_begun",
        "_client",
        "_clock",
        "_direct",
        "_over",
        "_record",
        "_write_limit_s",
        "committed",
        "complete",
    )

    content_type = b"application/json"

    def __init__(
        self,
        send: Send,
        client: Lifeline,
        record: Record,
        clock: Clock,
        write_limit_s: float,
        direct: Direct | None = None,
    ) -> None:
        self.committed = False
        self._begun = False
        """The head is written: no other can be."""
        self._over = False
        """Of a stream: its end is, too."""
        self.complete = False
        """The engine's answer is: whatever happens now, it was answered well."""
        self._also: Headers = []
        self._asgi_send = send
        self._client = client
        self._record = record
        self._clock = clock
        self._write_limit_s = write_limit_s
        self._direct = direct

    def also(self, headers: Headers) -> None:
        self._also += headers

    async def write(self, block: bytes) -> None:
        await self._send(self._head([(b"content-length", b"%d" % len(block))]))
        self._begun = True
        await self._send({"type": "http.response.body", "body": block})
        self.complete = True

    def offer(self, block: bytes, *, last: bool) -> bool:
        return False

    async def end(self) -> None:
        """The one write was the end."""

    async def fail(self, error: GatewayError) -> None:
        if self._begun:
            if not self.complete:
                self._client.abandon()
            return
        close = self._client.answer_is_last() or isinstance(error, Draining)
        await send_error(self._send, error, self._record, close=close, also=self._also)

    async def _send(self, message: dict[str, Any]) -> None:
        """Ends when the client has taken it, or the server has room to hold it for the client."""
        if self._direct is None or not self._direct.tells(message):
            self._client.waits(self._write_limit_s)
            await self._asgi_send(message)
            self._client.waits_no_more()

    def _head(self, headers: Headers) -> dict[str, Any]:
        """From now on no other answer is possible."""
        record = self._record
        self.committed = True
        record.status = 200
        record.first_byte = self._clock()
        waited_ms = (record.first_byte - record.began) * 1e3
        if record.routed_by is not None:
            headers.append((b"x-gllm-route", record.routed_by.encode()))
        headers += (
            (b"content-type", self.content_type),
            (b"x-request-id", record.id.encode()),
            (b"x-gllm-replica", record.replica.encode()),
            (b"x-gllm-attempts", b"%d" % record.attempts),
            (b"server-timing", b"first_byte;dur=%.2f" % waited_ms),
            *self._also,
        )
        return {"type": "http.response.start", "status": 200, "headers": headers}


class EventStream(Answer):
    """Blocks of whole events. A slow reader is waited for, so that it slows the engine."""

    __slots__ = ()

    content_type = b"text/event-stream; charset=utf-8"

    async def write(self, block: bytes) -> None:
        if not self._begun:
            await self._send(self._stream_head())
            self._begun = True
        await self._send({"type": "http.response.body", "body": block, "more_body": True})
        if end_of(self._record.endpoint)(block):
            self.complete = True

    def offer(self, block: bytes, *, last: bool) -> bool:
        direct = self._direct
        if direct is None:
            return False
        if not self._begun:
            self._begun = direct.tells(self._stream_head())
        if not self._begun or not direct.takes(block):
            return False
        if last:
            self.complete = True
        return True

    async def end(self) -> None:
        self.complete = True
        await self._finish(b"")

    async def fail(self, error: GatewayError) -> None:
        if not self._begun:
            await super().fail(error)
        elif not self._over:
            record = self._record
            last = b"" if self.complete else error_event(error, Route(record.endpoint), record.events)
            await self._finish(last)

    def _stream_head(self) -> dict[str, Any]:
        return self._head([(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])

    async def _finish(self, last: bytes) -> None:
        await self._send({"type": "http.response.body", "body": last, "more_body": False})
        self._over = True


async def send_error(
    send: Send, error: GatewayError, record: Record, *, close: bool, also: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """`close`: the rest of the request is still on its way and nobody will read it."""
    record.status = row_of(error).status
    body = error_json(error)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", record.id.encode()),
        *headers_of(error),
        *also,
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": record.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def headers_of(error: GatewayError) -> Headers:
    """What an error says in headers."""
    row = row_of(error)
    headers: Headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if error.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if error.should_retry else b"false"))
    if row.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if row.status == 503:
        headers.append((b"x-gllm-reason", (error.code or row.code).encode()))
    if isinstance(error, RateLimited):
        headers += limit_headers(error.standing)
    if isinstance(error, WrongMethod):
        headers.append((b"allow", error.allow.encode()))
    return headers
