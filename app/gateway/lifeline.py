"""The client's end of a request: its body, and the moment it goes away.

This is the subtle file. There is one reader of `receive`. While the block lasts, a hang-up (or a client that stalls
for too long) cancels the work inside, and that cancel, and no one else's, becomes an error where the block ends.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol, Self

from app.errors import BodyTooLarge, BodyTooSlow, ClientGone, ClientStalled, GatewayError
from app.reliability.watch import Watch

Receive = Callable[[], Awaitable[dict[str, Any]]]


class Direct(Protocol):
    """One request, as our own server has it beside ASGI (`cycle`): it spares a task, and most of the waiting."""

    began: float
    """When its head was there; its turn may have come later."""
    on_lost: Callable[[], None] | None

    def whole_body(self) -> bytes | None:
        """If all of it has come already."""
        ...

    def tells(self, message: dict[str, Any]) -> bool:
        """As ASGI's `send`, if nobody has to be waited for. Otherwise nothing is written."""
        ...

    def takes(self, part: bytes) -> bool:
        """A part of a body without a length, as `tells`."""
        ...

    def abort(self) -> None: ...

    def answer_is_last(self) -> None: ...


class Lifeline:
    """As a block: the work inside lasts as long as the client."""

    __slots__ = ("_cut_by", "_direct", "_overdue", "_receive", "_task", "_watch", "_watcher", "complete", "due")

    def __init__(self, receive: Receive, watch: Watch, direct: Direct | None) -> None:
        self.due = math.inf
        self.complete = False
        """The whole request has arrived: the connection can be kept."""
        self._receive = receive
        self._watch = watch
        self._direct = direct
        self._watcher: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._overdue: type[GatewayError] = ClientStalled
        self._cut_by: GatewayError | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        if self._direct is not None:
            self._direct.on_lost = self._gone
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._watch.discard(self)
        if self._direct is not None:
            self._direct.on_lost = None
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait((self._watcher,))
        if self._cut_by is not None and task is not None:
            ours_alone = task.uncancel() == 0
            if self._direct is not None and isinstance(self._cut_by, ClientGone):
                self._direct.abort()
            if ours_alone and kind is asyncio.CancelledError:
                raise self._cut_by from None

    async def body(self, max_bytes: int, limit_s: float) -> bytes:
        """The whole body; refused as soon as it is larger or slower than allowed."""
        body = None if self._direct is None else self._direct.whole_body()
        if body is None:
            body = await self._body(max_bytes, limit_s)
        if len(body) > max_bytes:
            raise BodyTooLarge
        self.complete = True
        if self._direct is None:
            self._watcher = asyncio.get_running_loop().create_task(self._listen())
        return body

    def answer_is_last(self) -> bool:
        """Before an answer: must the connection end with it, because the rest of the request is still on its way?"""
        if not self.complete and self._direct is not None:
            self._direct.answer_is_last()
        return not self.complete

    def abandon(self) -> None:
        """An answer that was begun cannot go on. Any other server closes the connection by itself when we return."""
        if self._direct is not None:
            self._direct.abort()

    def waits(self, limit_s: float) -> None:
        """It is the client's turn, to send or to take something: it has this long."""
        self.due = self._watch.clock() + limit_s
        self._watch.add(self)

    def waits_no_more(self) -> None:
        self.due = math.inf
        self._watch.discard(self)

    def expire(self, now: float) -> None:
        self._cut(self._overdue())

    async def _body(self, max_bytes: int, limit_s: float) -> bytes:
        self._overdue = BodyTooSlow
        self.waits(limit_s)
        body, more = await self._part()
        if more:
            parts, size = [body], len(body)
            while more:
                if size > max_bytes:
                    raise BodyTooLarge
                part, more = await self._part()
                parts.append(part)
                size += len(part)
            body = b"".join(parts)
        self.waits_no_more()
        self._overdue = ClientStalled
        return body

    async def _part(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone()

    def _gone(self) -> None:
        self._cut(ClientGone())

    def _cut(self, reason: GatewayError) -> None:
        """End the work inside the block, from outside its task. The first reason counts."""
        if self._cut_by is None and self._task is not None:
            self._cut_by = reason
            self._task.cancel()
