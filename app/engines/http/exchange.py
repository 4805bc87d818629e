"""One request to an engine and its answer: the way an engine's work enters the gateway."""

import asyncio
import math
from types import TracebackType
from typing import Self

from app.engines.base import PassOn
from app.engines.http.connection import Connection
from app.engines.http.limits import Limits, Timeouts
from app.engines.http.pool import Pool
from app.engines.http.refusals import refusal
from app.errors import (
    DeadlinePassed,
    EngineBroken,
    EngineConnectTimeout,
    EngineError,
    EngineLost,
    EngineNonsense,
    EngineSilent,
    EngineStalled,
    GatewayError,
)
from app.generation import Call
from app.reliability.watch import Watch
from app.wire.sse import EventCutter

JSON, EVENTS = b"application/json", b"text/event-stream"

REFUSAL_BYTES = 64 * 1024
REFUSAL_S = 1.0
"""As much of an error's body is read, for so long. The status alone says what to do; the rest is for the log."""


class HttpExchange:
    """Both halves of the engine protocol's exchange, and a `Wait`: no generator, no task, no timer of its own."""

    __slots__ = (
        "_api_key",
        "_call",
        "_connecting",
        "_connection",
        "_cutter",
        "_failure",
        "_full",
        "_given",
        "_limits",
        "_pass_on",
        "_pool",
        "_request",
        "_timeouts",
        "_verdict",
        "_watch",
        "due",
    )

    def __init__(
        self,
        call: Call,
        request: bytes,
        pool: Pool,
        watch: Watch,
        timeouts: Timeouts,
        limits: Limits,
        api_key: str | None,
    ) -> None:
        self._call = call
        self._request = request
        self._pool = pool
        self._watch = watch
        self._timeouts = timeouts
        self._limits = limits
        self._api_key = api_key
        self._cutter = EventCutter(limits.max_event_bytes) if call.stream else None
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[object] | None = None
        self._verdict: GatewayError | None = None
        """The error for which the connecting was ended."""
        self._given = False
        """The caller has had a block of the answer."""
        self._pass_on: PassOn | None = None
        self._full = False
        """The caller takes no more for now,"""
        self._failure: Exception | None = None
        """or could not take it, which is of no concern to whoever reads the socket."""
        self.due = math.inf

    async def __aenter__(self) -> Self:
        self._watch.add(self)
        try:
            connection = await self._answered()
            if connection.status != 200:
                raise await self._refused(connection)
            self._check(connection.headers)
            self._request = b""  # it may be large, and the answer may take long
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        assert connection is not None, "an exchange gives nothing outside its block"
        cutter = self._cutter
        if cutter is None:
            if self._given:
                raise StopAsyncIteration
            return await self.whole()
        while True:
            if connection.size:
                block = cutter.feed(connection.take())
                if block:
                    self._given = True
                    return block
            elif self._is_over(connection, cutter):
                raise StopAsyncIteration
            else:
                if connection.begun:
                    self._allow(self._timeouts.idle_s)
                await connection.changed()

    async def whole(self) -> bytes:
        connection = self._connection
        assert connection is not None, "an exchange gives nothing outside its block"
        while not connection.complete:
            if connection.paused:
                raise EngineNonsense("The engine's answer is larger than the gateway accepts.")
            if connection.fault is not None:
                raise connection.fault
            if connection.begun:
                self._allow(self._timeouts.idle_s)
            await connection.changed()
        self._given = True
        return connection.take()

    async def flow(self, pass_on: PassOn) -> bool:
        """What comes while this waits goes on within the very callback that has read it."""
        connection, cutter = self._connection, self._cutter
        assert connection is not None, "an exchange gives nothing outside its block"
        assert cutter is not None, "what is no stream comes whole"
        self._pass_on = pass_on
        try:
            while True:
                if connection.size:
                    self._hand_on(connection, cutter, pass_on)
                elif self._is_over(connection, cutter):
                    return False
                else:
                    if connection.begun:
                        self._allow(self._timeouts.idle_s)
                    await connection.changed(self._came)
                if self._failure is not None:
                    raise self._failure
                if self._full:
                    return True
        finally:
            self._pass_on, self._full, self._failure = None, False, None

    def _came(self) -> bool:
        """A read, while `flow` waits. For each event of each stream, and so without more calls than it needs."""
        connection, cutter, pass_on = self._connection, self._cutter, self._pass_on
        if connection is None or cutter is None or pass_on is None:
            return False
        self._hand_on(connection, cutter, pass_on)
        now, expires_at = self._watch.clock(), self._call.expires_at
        due = now + self._timeouts.idle_s
        self.due = due if due < expires_at else expires_at
        return not self._full and self._failure is None and now < expires_at

    def _hand_on(self, connection: Connection, cutter: EventCutter, pass_on: PassOn) -> None:
        try:
            block = cutter.feed(connection.take())
            if block:
                self._given = True
                self._full = not pass_on(block)
        except Exception as error:
            self._failure = error

    def expire(self, now: float) -> None:
        connection = self._connection
        error: GatewayError
        if now >= self._call.expires_at:
            error = DeadlinePassed()
        elif self._connecting is not None:
            error = EngineConnectTimeout()
        elif connection is not None and connection.awaited:
            error = EngineStalled() if connection.begun else EngineSilent()
        else:
            return  # what is slow is our own reader
        self.due = math.inf
        if self._connecting is not None:
            self._verdict = error
            self._connecting.cancel()
        elif connection is not None and not connection.complete:
            connection.drop(error)

    # --- the phases -----------------------------------------------------------------------------------------------

    async def _answered(self) -> Connection:
        """A connection on which the head of the answer has come."""
        reused = self._pool.take()
        if reused is not None:
            try:
                return await self._asked(reused)
            except EngineLost:
                if reused.heard:
                    raise
                # It was closing the idle connection while our request was on its way: no fault of anyone's.
        return await self._asked(await self._connected())

    async def _connected(self) -> Connection:
        self._allow(self._timeouts.connect_s)
        task = self._connecting = asyncio.current_task()
        assert task is not None
        others = task.cancelling()
        try:
            return await self._pool.connect()
        except asyncio.CancelledError:
            if self._verdict is None or task.uncancel() > others:
                raise
            raise self._verdict from None
        finally:
            self._connecting = None

    async def _asked(self, connection: Connection) -> Connection:
        self._connection = connection
        timeouts, limits = self._timeouts, self._limits
        streamed = self._cutter is not None
        self._allow(timeouts.first_byte_s if streamed or timeouts.whole_s is None else timeouts.whole_s)
        connection.send(self._request, pause_above=limits.buffer_bytes if streamed else limits.max_answer_bytes)
        while not connection.status:
            if connection.fault is not None:
                raise connection.fault
            await connection.changed()
        return connection

    async def _refused(self, connection: Connection) -> EngineError:
        """What the engine's error means, read from as much of it as comes."""
        self._allow(min(self._timeouts.idle_s, REFUSAL_S))
        while not (connection.complete or connection.fault or connection.paused or connection.size >= REFUSAL_BYTES):
            await connection.changed()
        if isinstance(connection.fault, DeadlinePassed):
            raise connection.fault
        return refusal(connection.status, connection.headers, connection.take()[:REFUSAL_BYTES], self._api_key)

    async def _leave(self) -> None:
        self._watch.discard(self)
        connection = self._connection
        if connection is not None:
            self._connection = None
            if not self._pool.give_back(connection):
                await connection.aclose()

    # --- what they share ------------------------------------------------------------------------------------------

    def _allow(self, seconds: float) -> None:
        """From now on this long for what is waited for next, and never longer than the call has left."""
        now = self._watch.clock()
        if now >= self._call.expires_at:
            raise DeadlinePassed
        self.due = min(now + seconds, self._call.expires_at)

    def _check(self, headers: dict[bytes, bytes]) -> None:
        kind = headers.get(b"content-type", b"")
        if kind != (EVENTS if self._call.stream else JSON):  # as it nearly always is
            kind = kind.partition(b";")[0].strip().lower()
            fits = kind == EVENTS if self._call.stream else kind == JSON or kind.endswith(b"+json")
            if not fits:
                raise EngineNonsense(detail=f"content type {kind!r}")
        for name, plain in (b"content-encoding", b"identity"), (b"transfer-encoding", b"chunked"):
            if name in headers and headers[name].lower() != plain:
                raise EngineNonsense(detail=f"{name!r}: {headers[name]!r}")

    def _is_over(self, connection: Connection, cutter: EventCutter) -> bool:
        """Nothing is left, and nothing comes. Raises if more should have come."""
        if connection.complete:
            if cutter.rest():
                raise EngineBroken(detail="the stream ended inside an event")
            return True
        if connection.fault is not None:
            raise self._fault(connection.fault)
        return False

    def _fault(self, fault: GatewayError) -> GatewayError:
        if isinstance(fault, EngineLost) and self._given:
            return EngineBroken(detail=fault.detail)
        return fault
