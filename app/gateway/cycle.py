"""One request and its answer on a connection: ASGI's two functions, and the same without waiting where that can be.

uvicorn's own tries each header against two patterns, copies it twice, and writes head and body apart. An answer of ours
has fifteen headers: that was a tenth of all that a request costs.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.gateway.bell import Bell

NO_BODY = (204, 304)
LAST_CHUNK = b"0\r\n\r\n"
LENGTH = b"\r\ncontent-length: "
CLOSE = b"\r\nconnection: close\r\n"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"

log = logging.getLogger("uvicorn.error")


class Cycle:
    """What uvicorn's protocol looks at keeps its names."""

    __slots__ = (
        "_chunked",
        "_chunks",
        "_default_headers",
        "_held",
        "_method",
        "_on_lingering",
        "_on_response",
        "_owed",
        "_until_closed",
        "began",
        "body",
        "disconnected",
        "expects_100",
        "flow",
        "keep_alive",
        "message_event",
        "more_body",
        "on_lost",
        "response_complete",
        "started",
        "task",
        "transport",
    )

    def __init__(
        self,
        method: str,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: list[tuple[bytes, bytes]],
        on_response: Callable[[], None],
        on_lingering: Callable[[], None],
        *,
        began: float,
        expects_100: bool,
        keep_alive: bool,
        chunks: bool,
    ) -> None:
        """`on_lingering`: the answer is to be the last, and its request has not come to its end. `chunks`: its client
        can read a body in chunks, which HTTP/1.0 has not."""
        self.began = began
        """When its head was there."""
        self.transport = transport
        self.flow = flow
        self.expects_100 = expects_100
        """Its client waits to hear that its body is wanted."""
        self.keep_alive = keep_alive
        self.on_lost: Callable[[], None] | None = None
        """Hears that the client is gone."""
        self.task: asyncio.Task[None] | None = None
        """That answers it."""
        self.message_event = Bell()
        self.body = b""
        """What has come of it, and has not been taken."""
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self._method = method
        self._default_headers = default_headers
        self._on_response = on_response
        self._on_lingering = on_lingering
        self.started = False
        self._chunks = chunks
        self._chunked = self._until_closed = False
        self._owed = 0
        """Bytes of a body of known length that are still to be written."""
        self._held = b""
        """A head whose body has a length, and so comes next."""

    # --- as ASGI has it -------------------------------------------------------------------------------------------

    async def receive(self) -> dict[str, Any]:
        if self.expects_100 and not self.transport.is_closing():
            self.transport.write(GO_ON)
            self.expects_100 = False
        if not self.disconnected and not self.response_complete:
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: dict[str, Any]) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if not self.disconnected:
            self._say(message)

    # --- at once --------------------------------------------------------------------------------------------------

    def whole_body(self) -> bytes | None:
        """If all of it has come already; else `receive` gives it, in parts."""
        if self.more_body or self.disconnected:
            return None
        body, self.body = self.body, b""
        self.message_event.clear()
        return body

    def tells(self, message: dict[str, Any]) -> bool:
        """As `send`, if nobody has to be waited for."""
        if self.flow.write_paused or self.disconnected:
            return False
        self._say(message)
        return True

    def takes(self, part: bytes) -> bool:
        """A part of a body of unknown length, as `tells`. For each event of each stream."""
        if self.flow.write_paused or self.disconnected or not (part and self._chunked):
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

    def lost(self) -> None:
        """Its client is gone."""
        if not self.response_complete:
            self.disconnected = True
            self.message_event.set()
        if self.on_lost is not None:
            self.on_lost()

    def abort(self) -> None:
        """Close without sending what a stalled reader has not taken."""
        self.transport.abort()

    def answer_is_last(self) -> None:
        """The client is still sending what nobody will read. Closing on it would take the answer back with a reset."""
        self._on_lingering()

    # --- from its beginning to its end ----------------------------------------------------------------------------

    async def run(self, app: Any, scope: dict[str, Any], tasks: set[asyncio.Task[None]]) -> None:
        """An application of ours answers everything, and completely: what it does not is an error. `tasks`: where the
        server looks who is still at work. It is left here, as a callback for it would be a step of the loop."""
        try:
            await app(scope, self.receive, self.send)
        except Exception:
            log.exception("A request ended in an error that nobody had foreseen.")
        finally:
            self._on_response = self._on_lingering = _nothing  # they hold the connection, which holds this
            if self.task is not None:
                tasks.discard(self.task)
                self.task = None
            if not self.response_complete and not self.disconnected:
                self.transport.close()

    def _say(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
        else:
            self._write(message.get("body", b""), message.get("more_body", False))

    def _begin(self, status: int, given: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        self.expects_100 = False
        headers = [*self._default_headers, *given]
        head = STATUS_LINE[status] + b"\r\n".join(map(b": ".join, headers)) + b"\r\n"
        if head.count(b"\n") != len(headers) + 1 or head.count(b"\r") != len(headers) + 1:
            raise RuntimeError("A header is more than a line.")
        at = head.find(LENGTH)
        if at >= 0:
            self._owed = int(head[at + len(LENGTH) : head.index(b"\r", at + len(LENGTH))])
        elif status not in NO_BODY and self._method != "HEAD":
            if self._chunks:
                self._chunked = True
                head += b"transfer-encoding: chunked\r\n"
            else:
                self._until_closed, self.keep_alive = True, False
        if head.find(CLOSE) >= 0:
            self.keep_alive = False
        elif not self.keep_alive:
            head += CLOSE[2:]
        head += b"\r\n"
        if self._owed and self._method != "HEAD":
            self._held = head
        else:
            self.transport.write(head)

    def _write(self, body: bytes, more: bool) -> None:
        if not self.started or self.response_complete:
            raise RuntimeError("Not now: an answer is begun once, and ended once.")
        if self._method == "HEAD":
            self._owed = 0
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if data or not more:
                self.transport.write(data if more else data + LAST_CHUNK)
        elif self._until_closed:
            if body:
                self.transport.write(body)
        else:
            self._owed -= len(body)
            if self._owed < 0:
                raise RuntimeError("The body is longer than was said.")
            self.transport.write(self._held + body if self._held else body)
            self._held = b""
        if not more:
            self._end()

    def _end(self) -> None:
        if self._owed:
            raise RuntimeError("The body is shorter than was said.")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self._on_response()


def _nothing() -> None:
    """The request is over."""
