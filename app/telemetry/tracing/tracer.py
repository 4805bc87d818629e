"""The telemetry backend that makes traces: a place in the trace at a request's beginning, its spans after its end."""

from collections.abc import Callable

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

from app.clock import Clock
from app.telemetry.base import Backend
from app.telemetry.record import Record
from app.telemetry.tracing.outbox import Outbox
from app.telemetry.tracing.places import Places
from app.telemetry.tracing.sdk import Sdk
from app.telemetry.tracing.spans import OPERATIONS, Spans, count_of


class Tracer(Backend):
    """Spans are made when a request has ended. What is not about one request is in no trace."""

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
        self.begin = Places(sdk.provider.sampler).begin
        self._spans = Spans(sdk.provider.resource, engine, clock, unix_now)
        self._outbox = Outbox(sdk.exporter, sdk.batches, self._spans_of, count_of, on_dropped, on_change)
        self.provider: TracerProvider = sdk.provider
        """For instrumentations; their spans take the same way."""
        self.provider.add_span_processor(_Forward(self._outbox))

    def close(self, limit_s: float) -> None:
        self._outbox.close(limit_s)

    def ended(self, record: Record) -> None:
        """Of what FastAPI serves, its instrumentation tells."""
        if record.trace is not None and record.trace.sampled and record.endpoint in OPERATIONS:
            self._outbox.put(record)

    def _spans_of(self, record: Record) -> list[ReadableSpan]:
        assert record.trace is not None, "only traced requests are put into the outbox"
        return self._spans.of(record, record.trace)


class _Forward(SpanProcessor):
    def __init__(self, outbox: Outbox[Record]) -> None:
        self._outbox = outbox

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._outbox.put(span)
