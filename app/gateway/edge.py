"""The edge: pure ASGI in front of FastAPI. The endpoints that engines answer are served here, all else behind.

FastAPI's routing alone costs more than everything else a call passes (docs/adr/0005), so hot paths never reach it.
"""

import asyncio
import logging
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from app.clock import Clock
from app.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    Draining,
    GatewayError,
    InvalidRequest,
    Outcome,
    Unforeseen,
    WrongMethod,
)
from app.gateway.answers import Answer, EventStream, Send, send_error
from app.gateway.auth import TENANT, Door, check_allowed, commands_workers
from app.gateway.endpoints import PROBED
from app.gateway.intake import Headers, Intake, check_media_type
from app.gateway.lifeline import Direct, Lifeline, Receive
from app.gateway.pipeline import Pipeline
from app.generation import Route
from app.reliability.watch import Watch
from app.telemetry.base import Telemetry
from app.telemetry.record import Record
from app.telemetry.story import Asked, Refusal
from app.tenant import Tenant
from app.trace import Trace
from app.tracebacks import forget
from app.wire.errors import row_of
from app.wire.headers import trace_context

log = logging.getLogger("gllm")

Scope = dict[str, Any]

Admit = Callable[[Mapping[str, Any], Headers], Tenant]
BeginTrace = Callable[[Trace | None, str], Trace]
"""A place in the trace for a request of this name, below its caller's."""

RECORD = "gllm.record"
"""Where what is behind finds the record of its request."""

CLIENT = "gllm.client"
"""The ASGI extension under which our own server offers more of a request's client than ASGI does (`Direct`)."""

HOT_PATHS: dict[str, Route] = {
    **{route.value: route for route in Route},
    **{route.value.removeprefix("/v1"): route for route in Route},
    **{f"/v1{route.value}": route for route in (Route.TOKENIZE, Route.DETOKENIZE)},
}
"""GLLM's clients leave `/v1` out."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9-]{1,64}")
_ONCE = {
    b"authorization": "ambiguous_header",
    b"x-api-key": "ambiguous_header",
    b"content-type": "ambiguous_header",
    b"content-length": "ambiguous_header",
    b"x-request-timeout-ms": "ambiguous_header",
    b"x-priority": "ambiguous_header",
    b"idempotency-key": "invalid_idempotency_key",
    b"last-event-id": "ambiguous_header",
    b"x-session-id": "ambiguous_header",
}
"""Headers that stand once or not at all, and the code of the error for those that do not."""


@dataclass(frozen=True)
class EdgeLimits:
    max_body_bytes: int
    body_timeout_s: float
    write_timeout_s: float


class Edge:
    def __init__(
        self,
        behind: ASGIApp,
        door: Door,
        intake: Intake,
        pipeline: Pipeline,
        telemetry: Telemetry,
        watch: Watch,
        limits: EdgeLimits,
        known_paths: frozenset[str] = frozenset(),
        begin_trace: BeginTrace | None = None,
        name: str = "",
    ) -> None:
        """`name`: what the ids begin with that it gives."""
        self._name = name
        self._random_bits = 96 - 4 * len(name)
        self._behind = behind
        self._door = door
        self._intake = intake
        self._pipeline = pipeline
        self._telemetry = telemetry
        self._watch = watch
        self._clock: Clock = watch.clock
        self._limits = limits
        self._known_paths = known_paths
        self._begin_trace = begin_trace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._behind(scope, receive, send)  # type: ignore[arg-type]  # one ASGI, two spellings of its types
            return
        headers: Headers = dict(scope["headers"])
        route = HOT_PATHS.get(scope["path"])
        direct: Direct | None = scope["extensions"].get(CLIENT) if scope.get("extensions") else None
        began = self._clock() if direct is None else direct.began
        record = Record(self._request_id(headers), self._endpoint(scope, route), scope["method"], began)
        if self._begin_trace is not None and route is not None:
            record.trace = self._begin_trace(trace_context(headers), record.endpoint)
        self._telemetry.began(record)
        try:
            if route is None:
                await self._serve_behind(scope, headers, receive, send, record)
            else:
                await self._serve(route, scope, headers, receive, send, record, direct)
        finally:
            record.ended = self._clock()
            self._telemetry.ended(record)

    async def _serve(
        self,
        route: Route,
        scope: Scope,
        headers: Headers,
        receive: Receive,
        send: Send,
        record: Record,
        direct: Direct | None,
    ) -> None:
        """One call, from its head to its end, for as long as its client is there."""
        try:
            try:
                async with Lifeline(receive, self._watch, direct) as client:
                    await self._way_through(route, scope, headers, client, send, record, direct)
            except BodyTooSlow as error:  # its block ended with it: the answer has one of its own
                _failed(record, error)
                async with Lifeline(receive, self._watch, direct) as client:
                    await Answer(send, client, record, self._clock, self._limits.write_timeout_s).fail(error)
                forget(error)
        except ClientGone as error:
            _failed(record, error)
            record.status = row_of(error).status
            forget(error)

    async def _way_through(
        self,
        route: Route,
        scope: Scope,
        headers: Headers,
        client: Lifeline,
        send: Send,
        record: Record,
        direct: Direct | None,
    ) -> None:
        """Every error of the way is answered here, once."""
        out = Answer(send, client, record, self._clock, self._limits.write_timeout_s, direct)
        try:
            tenant = self._admit(scope, headers, record, self._door.admit)
            self._check_head(scope, headers)
            body = await client.body(self._limits.max_body_bytes, self._limits.body_timeout_s)
            record.received = self._clock()
            call = self._intake.call(route, record.id, body, headers, record.began, tenant, record.trace)
            del body  # the call has its own, and a long prompt is not to be held twice while it is answered
            record.parsed = self._clock()
            record.model, record.stream, record.choices = call.model, call.stream, call.choices
            record.max_tokens, record.temperature = call.max_tokens, call.temperature
            record.priority = call.priority
            if record.story is not None:
                record.story.asked = Asked.of(call)
            if call.stream:
                out = EventStream(send, client, record, self._clock, self._limits.write_timeout_s, direct)
            if b"x-priority" in headers:
                out.also([(b"x-gllm-priority", call.priority.name.lower().encode())])  # it may be less than was asked
            await self._pipeline.serve(call, out, record)
        except ClientGone:
            raise
        except asyncio.CancelledError:  # the server stops by force; or the client is gone, as its block will say
            if not out.complete:
                _failed(record, Draining())
                record.status = record.status or row_of(Draining()).status
            raise
        except GatewayError as error:
            await _fail(out, record, error)
        except Exception:
            log.exception("request %s failed unforeseen", record.id)
            await _fail(out, record, Unforeseen())

    async def _serve_behind(self, scope: Scope, headers: Headers, receive: Receive, send: Send, record: Record) -> None:
        """FastAPI's part: few calls, no streams. Adds the request id, and sees the status."""

        async def told(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                record.outcome = Outcome.OK if scope["path"] in PROBED else _outcome_of(record.status)
                message["headers"] = [*message["headers"], (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            commands = commands_workers(scope["path"])
            admit = self._door.admit_commander if commands else self._door.admit
            scope[TENANT], scope[RECORD] = self._admit(scope, headers, record, admit), record
            await self._behind(scope, receive, told)  # type: ignore[arg-type]  # one ASGI, two spellings of its types
        except GatewayError as error:
            _failed(record, error)
            await send_error(send, error, record, close=False)
        except Exception:
            log.exception("request %s failed unforeseen", record.id)
            _failed(record, Unforeseen(), committed=0 < record.status < 500)
            if record.status == 0:
                await send_error(send, Unforeseen(), record, close=True)

    def _admit(self, scope: Scope, headers: Headers, record: Record, admit: Admit) -> Tenant:
        if len(headers) != len(scope["headers"]):
            _check_doubles([name for name, _ in scope["headers"]])
        tenant = admit(scope, headers)
        record.tenant = tenant.name
        check_allowed(tenant, scope["path"])
        return tenant

    def _check_head(self, scope: Scope, headers: Headers) -> None:
        if scope["method"] != "POST":
            raise WrongMethod(allow="POST")
        check_media_type(headers)
        if int(headers.get(b"content-length", 0)) > self._limits.max_body_bytes:
            raise BodyTooLarge

    def _request_id(self, headers: Headers) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        bits = self._random_bits
        return f"req-{self._name}{random.getrandbits(bits):0{bits // 4}x}"

    def _endpoint(self, scope: Scope, route: Route | None) -> str:
        if route is not None:
            return route.value
        path: str = scope["path"]
        return path if path in self._known_paths else "other"


def _outcome_of(status: int) -> Outcome:
    if status < 400:
        return Outcome.OK
    return Outcome.CLIENT_ERROR if status < 500 else Outcome.UPSTREAM_FAILED


def _check_doubles(names: list[bytes]) -> None:
    for name, code in _ONCE.items():
        if names.count(name) > 1:
            raise InvalidRequest("This header stands twice.", param=name.decode().title(), code=code)


async def _fail(out: Answer, record: Record, error: GatewayError) -> None:
    """What comes after a complete answer is no failure of the request."""
    if not out.complete:
        _failed(record, error, committed=out.committed)
    forget(error)
    await out.fail(error)


def _failed(record: Record, error: GatewayError, *, committed: bool = False) -> None:
    record.error = type(error).__name__
    record.detail = getattr(error, "detail", "")
    record.code = error.code or row_of(error).code
    if record.story is not None:
        record.story.refusal = Refusal.of(error)
    interrupted = committed and error.outcome is Outcome.UPSTREAM_FAILED
    record.outcome = Outcome.INTERRUPTED if interrupted else error.outcome
