"""From the record of a request to the spans that tell it, by the conventions for HTTP and for generative AI.

Never a prompt, never a key, and of an engine's error only its class.
"""

from collections.abc import Iterator

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanKind

from app.clock import Clock
from app.errors import Outcome
from app.generation import Route
from app.telemetry.record import Attempt, Record
from app.telemetry.tracing.maker import Attributes, Maker
from app.trace import Trace

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


def count_of(record: Record) -> int:
    return 1 + len(record.waits) + 2 * len(record.tries) + _has_streamed(record)


class Spans:
    """Of requests that engines answer. The server's span is the parent of all; an engine's own span hangs below the
    attempt that it was part of.
    """

    def __init__(self, resource: Resource, provider: str, clock: Clock, unix_now: Clock) -> None:
        """`provider`: what kind of engine answers."""
        self.span = Maker(resource).span
        self.provider = provider
        self._clock = clock
        self._unix_now = unix_now

    def of(self, record: Record, trace: Trace) -> list[ReadableSpan]:
        return list(_Telling(self, record, trace, self._unix_now() - self._clock()).all())


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
                yield self._route(attempt)
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

    def _route(self, attempt: Attempt) -> ReadableSpan:
        """The choice of a replica. While there was none to choose from it waited, which is told apart."""
        waited = [ended for _, ended in self._record.waits if ended <= attempt.began]
        said: Attributes = {"gllm.replica": attempt.replica, "gllm.candidates": attempt.among}
        if attempt.reason is not None:
            said["gllm.routed_by"] = attempt.reason.value
        began = max([attempt.sought or attempt.began, *waited])
        return self._spans.span("route", self._trace.child(), self._ns(began), self._ns(attempt.began), said)

    def _attempt(self, number: int, attempt: Attempt, trace: Trace) -> ReadableSpan:
        record = self._record
        said: Attributes = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.provider.name": self._spans.provider,
            "gen_ai.request.model": record.model,
            "gllm.replica": attempt.replica,
            "gllm.attempt": number,
        }
        if attempt.address is not None:
            said["server.address"], said["server.port"] = attempt.address
        self._tell_request(said)
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

    def _tell_request(self, said: Attributes) -> None:
        record = self._record
        if record.stream:
            said["gen_ai.request.stream"] = True
        if record.choices != 1:
            said["gen_ai.request.choice.count"] = record.choices
        if record.max_tokens is not None:
            said["gen_ai.request.max_tokens"] = record.max_tokens
        if record.temperature is not None:
            said["gen_ai.request.temperature"] = record.temperature

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
