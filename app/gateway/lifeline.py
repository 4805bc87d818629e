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


class Connection(Protocol):
    """What our own server protocol offers beyond ASGI (`protocol`): it spares a task per request."""

    on_lost: Callable[[], None] | None

    def abort(self) -> None: ...

    def answer_is_last(self) -> None: ...

    def taker(self, scope: dict[str, Any]) -> Callable[[bytes], bool] | None:
        """What writes a part of the body that answers this request, if that can be done at once."""
        ...


class Lifeline:
    """As a block: the work inside lasts as long as the client."""

    __slots__ = ("_connection", "_cut_by", "_overdue", "_receive", "_task", "_watch", "_watcher", "complete", "due")

    def __init__(self, receive: Receive, watch: Watch, connection: Connection | None) -> None:
        self.due = math.inf
        self.complete = False
        """The whole request has arrived: the connection can be kept."""
        self._receive = receive
        self._watch = watch
        self._connection = connection
        self._watcher: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._overdue: type[GatewayError] = ClientStalled
        self._cut_by: GatewayError | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._watch.add(self)
        if self._connection is not None:
            self._connection.on_lost = self._gone
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._watch.discard(self)
        if self._connection is not None and self._connection.on_lost == self._gone:  # else the next request is there
            self._connection.on_lost = None
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait((self._watcher,))
        if self._cut_by is not None and task is not None:
            ours_alone = task.uncancel() == 0
            if self._connection is not None and isinstance(self._cut_by, ClientGone):
                self._connection.abort()
            if ours_alone and kind is asyncio.CancelledError:
                raise self._cut_by from None

    async def body(self, max_bytes: int, limit_s: float) -> bytes:
        """The whole body; refused as soon as it is larger or slower than allowed."""
        self._overdue = BodyTooSlow
        self.due = self._watch.clock() + limit_s
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
        self.due = math.inf
        self._overdue = ClientStalled
        if len(body) > max_bytes:
            raise BodyTooLarge
        self.complete = True
        if self._connection is None:
            self._watcher = asyncio.get_running_loop().create_task(self._listen())
        return body

    def answer_is_last(self) -> bool:
        """Before an answer: must the connection end with it, because the rest of the request is still on its way?"""
        if not self.complete and self._connection is not None:
            self._connection.answer_is_last()
        return not self.complete

    def abandon(self) -> None:
        """An answer that was begun cannot go on. Any other server closes the connection by itself when we return."""
        if self._connection is not None:
            self._connection.abort()

    def writing(self, limit_s: float) -> None:
        """A write begins: the client has this long to take it. `due = inf` when it has."""
        self.due = self._watch.clock() + limit_s

    def expire(self, now: float) -> None:
        self._cut(self._overdue())

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
