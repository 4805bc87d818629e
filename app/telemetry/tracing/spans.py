"""From the record of a request to the spans that tell it, by the conventions for HTTP and for generative AI.

Never a prompt, never a key, and of an engine's error only its class.
"""

from collections.abc import Iterator

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from app.clock import Clock
from app.errors import Outcome
from app.generation import Route
from app.telemetry.record import Attempt, Record
from app.trace import Trace

Attributes = dict[str, str | bool | int | float]

OPERATIONS: dict[str, str] = {
    Route.CHAT: "chat",
    Route.COMPLETIONS: "text_completion",
    Route.EMBEDDINGS: "embeddings",
    Route.RESPONSES: "chat",
    Route.MESSAGES: "chat",
    Route.TOKENIZE: "tokenize",
    Route.DETOKENIZE: "detokenize",
}
"""`gen_ai.operation.name` of each endpoint that engines answer."""

FAILURES = frozenset((Outcome.UPSTREAM_FAILED, Outcome.INTERRUPTED, Outcome.DEADLINE, Outcome.DRAINING))

_FAILED, _UNSET = Status(StatusCode.ERROR), Status(StatusCode.UNSET)


def count_of(record: Record) -> int:
    return 1 + len(record.waits) + len(record.tries) + _has_streamed(record)


class Spans:
    """Of requests that engines answer. The server's span is the parent of all; an engine's own span hangs below the
    attempt that it was part of.
    """

    def __init__(self, resource: Resource, provider: str, clock: Clock, unix_now: Clock) -> None:
        """`provider`: what kind of engine answers."""
        self._resource = resource
        self._scope = InstrumentationScope("gllm")
        self.provider = provider
        self._clock = clock
        self._unix_now = unix_now

    def of(self, record: Record, trace: Trace) -> list[ReadableSpan]:
        return list(_Telling(self, record, trace, self._unix_now() - self._clock()).all())

    def span(
        self,
        name: str,
        trace: Trace,
        began_ns: int,
        ended_ns: int,
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        failed: bool = False,
        events: tuple[Event, ...] = (),
        parent_is_remote: bool = False,
    ) -> ReadableSpan:
        parent = _context(trace, trace.parent_id, is_remote=parent_is_remote) if trace.parent_id else None
        return ReadableSpan(
            name,
            context=_context(trace, trace.span_id, is_remote=False),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            events=events,
            kind=kind,
            status=_FAILED if failed else _UNSET,
            start_time=began_ns,
            end_time=ended_ns,
            instrumentation_scope=self._scope,
        )


class _Telling:
    """One request. Its moments are on the process's clock; spans stand on the calendar's."""

    def __init__(self, spans: Spans, record: Record, trace: Trace, to_unix_s: float) -> None:
        self._spans = spans
        self._record = record
        self._trace = trace
        self._to_unix_s = to_unix_s
        self._operation = OPERATIONS[record.endpoint]

    def all(self) -> Iterator[ReadableSpan]:
        yield self._server()
        for began, ended in self._record.waits:
            yield self._spans.span("queue", self._trace.child(), self._ns(began), self._ns(ended), {})
        last = self._trace
        for number, attempt in enumerate(self._record.tries, 1):
            if attempt.trace is not None:
                yield self._attempt(number, attempt, attempt.trace)
                last = last if attempt.outrun else attempt.trace
        if _has_streamed(self._record):
            yield self._stream(last)

    def _server(self) -> ReadableSpan:
        record = self._record
        said: Attributes = {
            "http.request.method": record.method,
            "http.route": record.endpoint,
            "http.response.status_code": record.status,
            "gen_ai.operation.name": self._operation,
            "gllm.request_id": record.id,
            "gllm.outcome": record.outcome.value,
        }
        if record.tenant:
            said["gllm.tenant"] = record.tenant
        if record.model:
            said["gen_ai.request.model"] = record.model
        if record.replayed:
            said["gllm.replayed"] = True
        if record.error:
            said["error.type"] = record.error
        events = (Event("first_byte", timestamp=self._ns(record.first_byte)),) if record.first_byte else ()
        return self._spans.span(
            f"{record.method} {record.endpoint}",
            self._trace,
            self._ns(record.began),
            self._ns(record.ended),
            said,
            kind=SpanKind.SERVER,
            failed=record.status >= 500 or record.outcome in FAILURES,
            events=events,
            parent_is_remote=True,
        )

    def _attempt(self, number: int, attempt: Attempt, trace: Trace) -> ReadableSpan:
        record = self._record
        said: Attributes = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": self._spans.provider,
            "gen_ai.request.model": record.model,
            "gllm.replica": attempt.replica,
            "gllm.attempt": number,
        }
        if record.stream:
            said["gen_ai.request.stream"] = True
        if attempt.error:
            said["error.type"] = attempt.error
        elif attempt.outrun:
            said["gllm.outrun"] = True
        else:
            self._tell_result(attempt, said)
        return self._spans.span(
            f"{self._operation} {record.model}",
            trace,
            self._ns(attempt.began),
            self._ns(attempt.ended or record.ended),
            said,
            kind=SpanKind.CLIENT,
            failed=bool(attempt.error),
        )

    def _tell_result(self, attempt: Attempt, said: Attributes) -> None:
        """Tokens that no engine has counted are not told."""
        record = self._record
        if record.usage is not None and not record.guessed:
            said["gen_ai.usage.input_tokens"] = record.usage.prompt_tokens
            said["gen_ai.usage.output_tokens"] = record.usage.completion_tokens
            if record.usage.cached_tokens:
                said["gen_ai.usage.cache_read.input_tokens"] = record.usage.cached_tokens
        if record.stream and record.first_byte >= attempt.began:  # not if it went on with a stream that had begun
            said["gen_ai.response.time_to_first_chunk"] = record.first_byte - attempt.began

    def _stream(self, parent: Trace) -> ReadableSpan:
        record = self._record
        said: Attributes = {"gllm.events": record.events}
        return self._spans.span("stream", parent.child(), self._ns(record.first_byte), self._ns(record.ended), said)

    def _ns(self, moment: float) -> int:
        return int((moment + self._to_unix_s) * 1e9)


def _has_streamed(record: Record) -> bool:
    return record.stream and record.first_byte > 0


def _context(trace: Trace, span_id: str, *, is_remote: bool) -> SpanContext:
    state = TraceState.from_header([trace.state]) if trace.state else None
    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote, TraceFlags(trace.flags), state)
