"""A client below HTTP, on virtual time: it sends, reads, dawdles and leaves as its visit says, and remembers all."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from app.gateway.edge import CLIENT, Scope
from tests.simulation.history import Seen
from tests.simulation.world import Manner, Visit


class _Line:
    """Our own server's side of the connection (`app.gateway.lifeline.Direct`)."""

    def __init__(self, client: "Client") -> None:
        self.began = 0.0
        self.on_lost: Callable[[], None] | None = None
        self._client = client

    def abort(self) -> None:
        self._client.lost()

    def answer_is_last(self) -> None:
        """Its own part of this is bytes on a socket, which there is none of here."""

    def whole_body(self) -> bytes | None:
        return self._client.whole_body()

    def tells(self, message: dict[str, Any]) -> bool:
        return self._client.tells(message)

    def takes(self, part: bytes) -> bool:
        return self._client.tells({"type": "http.response.body", "body": part, "more_body": True})


class Client:
    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.seen = Seen(visit)
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._line = None if visit.plain else _Line(self)
        self._parts = _cut(visit.body(), visit.body_parts)
        self._taken = 0

    async def run(self, app: Callable[..., Any]) -> None:
        """From its arrival to the moment when the gateway has nothing more to do for it."""
        await asyncio.sleep(max(0.0, self.visit.at - self._loop.time()))
        self.seen.sent = self._loop.time()
        if self._line is not None:
            self._line.began = self.seen.sent
        task = self._loop.create_task(app(self._scope(), self._receive, self._send))
        leave = self._leaving(task)
        try:
            await asyncio.wait({task})
        finally:
            if leave is not None:
                leave.cancel()
            task.cancel()  # where it has no end
        self.seen.returned = self._loop.time()
        if self.seen.left is None and self.seen.ended is None:
            self.seen.cut_off = self.seen.returned  # servers close a connection on which an answer has no end
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self.seen.raised = repr(error)

    def hang_up(self) -> None:
        if self.seen.hung_up is None and self.seen.ended is None:
            self.seen.hung_up = self._loop.time()
            self._is_lost()

    def lost(self) -> None:
        """The gateway closes the connection without another word. The server tells of it a little later."""
        if self.seen.hung_up is None:
            self.seen.cut_off = self._loop.time()
        self._loop.call_soon(self._is_lost)

    def _is_lost(self) -> None:
        self._gone.set()
        if self._line is not None and self._line.on_lost is not None:
            self._line.on_lost()

    def _leaving(self, task: "asyncio.Task[Any]") -> asyncio.TimerHandle | None:
        match self.visit.manner:
            case Manner.HANGS_UP_AT_TIME:
                return self._loop.call_later(self.visit.leaves_after_s, self.hang_up)
            case Manner.IS_KILLED:
                return self._loop.call_later(self.visit.leaves_after_s, self._kill, task)
            case _:
                return None

    def _kill(self, task: "asyncio.Task[Any]") -> None:
        self.seen.killed = self._loop.time()
        task.cancel()

    def _scope(self) -> Scope:
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions",
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": self.visit.headers(),
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 50_000),
            "extensions": {} if self._line is None else {CLIENT: self._line},
        }

    async def _receive(self) -> dict[str, Any]:
        if self._taken < len(self._parts) and not await self._gone_within(self.visit.part_after_s):
            part = self._parts[self._taken]
            self._taken += 1
            more = self._taken < len(self._parts)
            if not more:
                self.seen.body_sent = self._loop.time()
            return {"type": "http.request", "body": part, "more_body": more}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self._gone.is_set():
            return
        began = self._loop.time()
        try:
            if self._stalls():
                await self._gone.wait()
            if await self._gone_within(self.visit.read_pace_s):
                return
        finally:
            waited = self._loop.time() - began
            self.seen.blocked_s += waited
            self.seen.longest_block_s = max(self.seen.longest_block_s, waited)
        self._note(message, began)

    def whole_body(self) -> bytes | None:
        """As a server has it: whole where it came in one part, and at once."""
        if self._taken or len(self._parts) > 1 or self.visit.part_after_s or self._gone.is_set():
            return None
        self._taken = 1
        self.seen.body_sent = self._loop.time()
        return self._parts[0]

    def tells(self, message: dict[str, Any]) -> bool:
        """If nobody has to wait for that."""
        if self._gone.is_set() or self._stalls() or self.visit.read_pace_s:
            return False
        self._note(message, self._loop.time())
        return True

    def _note(self, message: dict[str, Any], began: float) -> None:
        self.seen.note(message, began)
        if self.visit.manner is Manner.HANGS_UP_AT_BLOCK and len(self.seen.blocks) >= self.visit.leaves_at_block:
            self._loop.call_soon(self.hang_up)  # as from a socket: never inside the gateway's own send

    def _stalls(self) -> bool:
        return self.visit.manner is Manner.STOPS_READING and len(self.seen.blocks) >= self.visit.leaves_at_block

    async def _gone_within(self, seconds: float) -> bool:
        if seconds and not self._gone.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._gone.wait()
        return self._gone.is_set()


def _cut(body: bytes, parts: int) -> list[bytes]:
    size = -(-len(body) // parts)
    return [body[at : at + size] for at in range(0, len(body), size)]
