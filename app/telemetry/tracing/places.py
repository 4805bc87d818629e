"""A place in the trace for a request that has just come: below its caller's, and kept if the sampler says so."""

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

from app.trace import SAMPLED, Trace, new_span_id, new_trace_id

_NO_PARENT = Context()


class Places:
    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def begin(self, parent: Trace | None, name: str) -> Trace:
        if parent is None:
            trace_id, context, parent_id, state = new_trace_id(), _NO_PARENT, "", ""
        else:
            trace_id, context, parent_id, state = parent.trace_id, _as_context(parent), parent.span_id, parent.state
        said = self._sampler.should_sample(context, int(trace_id, 16), name, SpanKind.SERVER)
        flags = SAMPLED if said.decision is Decision.RECORD_AND_SAMPLE else 0
        return Trace(trace_id, new_span_id(), flags, parent_id, state)


def _as_context(parent: Trace) -> Context:
    found = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(parent.flags))
    return set_span_in_context(NonRecordingSpan(found), _NO_PARENT)
