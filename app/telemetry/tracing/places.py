"""A place in the trace for a request that has just come: below its caller's, and kept if the sampler says so."""

from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio, Sampler, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

from app.trace import SAMPLED, Trace, new_ids, new_span_id

Rule = Callable[[str, Trace | None, str], bool]
"""Whether the trace of this id is kept, with this parent, if there is one, and for a span of this name."""

_NO_PARENT = Context()


class Places:
    def __init__(self, sampler: Sampler) -> None:
        self._keeps = _rule_of(sampler)

    def begin(self, parent: Trace | None, name: str) -> Trace:
        if parent is None:
            trace_id, span_id = new_ids()
            return Trace(trace_id, span_id, SAMPLED if self._keeps(trace_id, None, name) else 0)
        flags = SAMPLED if self._keeps(parent.trace_id, parent, name) else 0
        return Trace(parent.trace_id, new_span_id(), flags, parent.span_id, parent.state)


def _rule_of(sampler: Sampler) -> Rule:
    """What the sampler decides. Of the usual ones it is one comparison, for which they take ten times as long."""
    if type(sampler) is TraceIdRatioBased:
        bound = sampler.bound
        return lambda trace_id, parent, name: int(trace_id[-16:], 16) < bound
    root = getattr(sampler, "_root", None)
    if type(sampler) is ParentBasedTraceIdRatio and type(root) is TraceIdRatioBased:
        below = root.bound
        return lambda trace_id, parent, name: int(trace_id[-16:], 16) < below if parent is None else parent.sampled
    return _asking(sampler)


def _asking(sampler: Sampler) -> Rule:
    def keeps(trace_id: str, parent: Trace | None, name: str) -> bool:
        context = _NO_PARENT if parent is None else _as_context(parent)
        said = sampler.should_sample(context, int(trace_id, 16), name, SpanKind.SERVER)
        return said.decision is Decision.RECORD_AND_SAMPLE

    return keeps


def _as_context(parent: Trace) -> Context:
    found = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(parent.flags))
    return set_span_in_context(NonRecordingSpan(found), _NO_PARENT)
