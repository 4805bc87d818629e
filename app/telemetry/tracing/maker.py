"""One finished span, from what is known of it. All that is known is known at its end (docs/adr/0013)."""

from collections.abc import Mapping, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from app.trace import Trace

Attributes = dict[str, str | bool | int | float | Sequence[str]]

_FAILED, _UNSET = Status(StatusCode.ERROR), Status(StatusCode.UNSET)


class Maker:
    def __init__(self, resource: Resource) -> None:
        self._resource = resource
        self._scope = InstrumentationScope("gllm")

    def span(
        self,
        name: str,
        trace: Trace,
        began_ns: int,
        ended_ns: int,
        attributes: Mapping[str, str | bool | int | float | Sequence[str]],
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


def _context(trace: Trace, span_id: str, *, is_remote: bool) -> SpanContext:
    state = TraceState.from_header([trace.state]) if trace.state else None
    return SpanContext(int(trace.trace_id, 16), int(span_id, 16), is_remote, TraceFlags(trace.flags), state)
