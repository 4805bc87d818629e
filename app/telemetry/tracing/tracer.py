"""The telemetry backend that makes traces: a place in the trace at a request's beginning, its spans after its end."""

from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

from app.clock import Clock
from app.telemetry.base import Event
from app.telemetry.record import Record
from app.telemetry.tracing.outbox import Outbox
from app.telemetry.tracing.sdk import Sdk
from app.telemetry.tracing.spans import OPERATIONS, Spans
from app.trace import SAMPLED, Trace, new_span_id, new_trace_id

_NO_PARENT = Context()


class Tracer:
    def __init__(
        self,
        sdk: Sdk,
        engine: str,
        clock: Clock,
        unix_now: Clock,
        on_dropped: Callable[[int], None],
        on_change: Callable[[bool, str], None],
    ) -> None:
        """`engine`: which kind of it answers; the rest as `Outbox` has it."""
        self._sampler = sdk.provider.sampler
        self._spans = Spans(sdk.provider.resource, engine, clock, unix_now)
        self._outbox = Outbox(sdk.exporter, sdk.batches, self._spans_of, on_dropped, on_change)
        self.provider: TracerProvider = sdk.provider
        """For instrumentations; their spans take the same way."""
        self.provider.add_span_processor(_Forward(self._outbox))

    def begin(self, parent: Trace | None, name: str) -> Trace:
        """The place of a request that has just come, below its caller's if it has told it."""
        if parent is None:
            trace_id, context, parent_id, state = new_trace_id(), _NO_PARENT, "", ""
        else:
            trace_id, context, parent_id, state = parent.trace_id, _as_context(parent), parent.span_id, parent.state
        said = self._sampler.should_sample(context, int(trace_id, 16), name, SpanKind.SERVER)
        flags = SAMPLED if said.decision is Decision.RECORD_AND_SAMPLE else 0
        return Trace(trace_id, new_span_id(), flags, parent_id, state)

    def close(self, limit_s: float) -> None:
        self._outbox.close(limit_s)

    def began(self, record: Record) -> None:
        """Its spans are made when it has ended."""

    def ended(self, record: Record) -> None:
        """Of what FastAPI serves, its instrumentation tells."""
        if record.trace is not None and record.trace.sampled and record.endpoint in OPERATIONS:
            self._outbox.put(record)

    def note(self, event: Event) -> None:
        """What is not about one request is in no trace."""

    def _spans_of(self, record: Record) -> list[ReadableSpan]:
        assert record.trace is not None, "only traced requests are put into the outbox"
        return self._spans.of(record, record.trace)


class _Forward(SpanProcessor):
    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._outbox.put(span)


def _as_context(parent: Trace) -> Context:
    found = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(parent.flags))
    return set_span_in_context(NonRecordingSpan(found), _NO_PARENT)
