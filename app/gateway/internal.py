"""The listener for machines: metrics and probes, from a thread with a loop of its own, so that they are answered while
the gateway's loop is busy. It says little, to whoever can reach it; so it is strict and short.
"""

import asyncio
import re
import socket
from asyncio import IncompleteReadError, LimitOverrunError, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from threading import Event, Thread
from typing import NamedTuple

from app.cluster.fleet import Fleet
from app.errors import Draining, GatewayError, HeadersTooLarge, MalformedHttp, NoReplica, UnknownPath, WrongMethod
from app.gateway.admission import Admission
from app.gateway.answers import headers_of
from app.gateway.heartbeat import Heartbeat
from app.gateway.siblings import Siblings
from app.telemetry.prometheus import Metrics
from app.wire.errors import error_json, row_of

STALLED_S = 5.0
"""An event loop that has not turned for so long is not alive."""

CONNECTION_S = 5.0
"""From a connection's first moment to its last. Each serves one request."""

MAX_HEAD_BYTES = 8_192
MAX_CONNECTIONS = 32

STOP_S = 2.0

_REQUEST = re.compile(rb"(?P<method>[A-Z]{1,16}) (?P<path>/[^ ?#]{0,1000})(?:\?[^ ]*)? HTTP/1\.[01]\r\n")
_ACCEPT = re.compile(rb"\r\naccept:[ \t]*([^\r\n]*)", re.IGNORECASE)


class Page(NamedTuple):
    status: int
    content_type: str
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Probes:
    """What machines ask. Each answer is read off in one step, and so from any thread."""

    def __init__(self, fleet: Fleet, admission: Admission, metrics: Metrics | None, heartbeat: Heartbeat) -> None:
        self._fleet = fleet
        self._admission = admission
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._pages: Mapping[bytes, Callable[[str], Page]] = {
            b"/metrics": self._metrics_page,
            b"/livez": self._livez,
            b"/readyz": self._readyz,
        }

    def answer(self, head: bytes) -> tuple[Page, bool]:
        """The page, and whether its body is wanted too."""
        asked = _REQUEST.match(head)
        if asked is None:
            return _refusal(MalformedHttp()), True
        page = self._pages.get(asked["path"])
        if page is None:
            return _refusal(UnknownPath()), True
        if asked["method"] not in (b"GET", b"HEAD"):
            return _refusal(WrongMethod(allow="GET, HEAD")), True
        accept = _ACCEPT.search(head)
        return page(accept[1].decode("latin-1") if accept else ""), asked["method"] == b"GET"

    def _metrics_page(self, accept: str) -> Page:
        if self._metrics is None:
            return _refusal(UnknownPath())
        content_type, body = self._metrics.page(accept)
        return Page(200, content_type, body)

    def _livez(self, _: str) -> Page:
        late_s = self._heartbeat.late_s
        if late_s > STALLED_S:
            return Page(503, "application/json", b'{"status":"stalled","seconds":%.1f}' % late_s)
        return Page(200, "application/json", b'{"status":"ok"}')

    def _readyz(self, _: str) -> Page:
        if self._admission.draining:
            return _refusal(Draining())
        if not self._fleet.ready:
            return _refusal(NoReplica(retry_after=1.0))
        return Page(200, "application/json", b'{"status":"ready"}')


def _refusal(error: GatewayError) -> Page:
    return Page(row_of(error).status, "application/json", error_json(error), tuple(headers_of(error)))


class InternalListener:
    """As a block: while it lasts, `probes` answer on `listening`, which is closed with it; and `siblings` are told what
    they ask, by the gateway's own loop, as only that may look at what it changes."""

    def __init__(self, listening: socket.socket, probes: Probes, siblings: Siblings) -> None:
        self.listening = listening
        self._probes = probes
        self._siblings = siblings
        self._gateways_loop: asyncio.AbstractEventLoop
        self._open = 0
        self._started = Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = Thread(target=lambda: asyncio.run(self._serve()), name="internal-listener", daemon=True)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        self._gateways_loop = asyncio.get_running_loop()
        self._thread.start()
        await asyncio.to_thread(self._started.wait)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            await asyncio.to_thread(self._thread.join, STOP_S)

    # --- in its own thread ----------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, sock=self.listening, limit=MAX_HEAD_BYTES)
        self._started.set()
        try:
            await self._stop.wait()
        finally:
            server.close()

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Whatever the other side does or leaves undone, the connection is over in time."""
        if self._open >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(CONNECTION_S) as within:
                writer.write(await self._answer(reader, within))
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, IncompleteReadError):
            pass  # it is gone, or as good as gone
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _answer(self, reader: StreamReader, within: asyncio.Timeout) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except LimitOverrunError:
            page, with_body = _refusal(HeadersTooLarge()), True
        else:
            if (asked := self._siblings.asked(head)) is not None:
                within.reschedule(None)  # it waits as long as it likes
                page, with_body = await self._told(asked), True
            else:
                page, with_body = self._probes.answer(head)
        lines = [
            b"HTTP/1.1 %d %b" % (page.status, HTTPStatus(page.status).phrase.encode()),
            b"content-type: %b" % page.content_type.encode(),
            b"content-length: %d" % len(page.body),
            b"connection: close",
            *(b"%b: %b" % header for header in page.headers),
        ]
        return b"\r\n".join([*lines, b"", page.body if with_body else b""])

    async def _told(self, asked: Callable[[], Awaitable[bytes]]) -> Page:
        async def told() -> bytes:
            return await asked()

        answer = asyncio.run_coroutine_threadsafe(told(), self._gateways_loop)
        return Page(200, "application/json", await asyncio.wrap_future(answer))
