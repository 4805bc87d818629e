"""One request and its answer on a connection: uvicorn's, but an answer's head is written in one step.

uvicorn tries each header against two patterns, copies it twice, and writes head and body apart. An answer of ours has
fifteen headers: that was a tenth of all that a request costs.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

NO_BODY = (204, 304)
LAST_CHUNK = b"0\r\n\r\n"


class Cycle(RequestResponseCycle):
    _held = b""
    """A head whose body has a length, and so comes next."""

    async def receive(self) -> Any:
        if self.more_body or self.disconnected or self.response_complete or not self.message_event.is_set():
            return await super().receive()
        self.message_event.clear()
        body, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message.get("headers", ()))
        else:
            self._write(message.get("body", b""), message.get("more_body", False))

    def takes(self, part: bytes) -> bool:
        """Write a part of a body of unknown length at once, where `send` would not have to wait."""
        if self.flow.write_paused or self.disconnected or not (part and self.chunked_encoding):
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

    def _begin(self, status: int, given: list[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        headers = [*self.default_headers, *given]
        named = dict(headers)
        length = named.get(b"content-length")
        if length is not None:
            self.expected_content_length, self.chunked_encoding = int(length), False
        elif status not in NO_BODY and self.scope["method"] != "HEAD":
            self.chunked_encoding = True
            headers.append((b"transfer-encoding", b"chunked"))
        if named.get(b"connection") == b"close":
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append((b"connection", b"close"))
        head = STATUS_LINE[status] + b"\r\n".join(map(b": ".join, headers)) + b"\r\n\r\n"
        if head.count(b"\n") != len(headers) + 2 or head.count(b"\r") != len(headers) + 2:
            raise RuntimeError("A header is more than a line.")
        if self.expected_content_length and self.scope["method"] != "HEAD":
            self._held = head
        else:
            self.transport.write(head)

    def _write(self, body: bytes, more: bool) -> None:
        if not self.response_started or self.response_complete:
            raise RuntimeError("Not now: an answer is begun once, and ended once.")
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if data or not more:
                self.transport.write(data if more else data + LAST_CHUNK)
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("The body is longer than was said.")
            self.transport.write(self._held + body if self._held else body)
            self._held = b""
        if not more:
            self._end()

    def _end(self) -> None:
        if self.expected_content_length:
            raise RuntimeError("The body is shorter than was said.")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
