"""Traces of what FastAPI serves, by OpenTelemetry's own instrumentation. Engines' endpoints do not come past it."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span

from app.telemetry.record import Record
from app.telemetry.tracing.sdk import environment
from app.trace import Trace

Scope = MutableMapping[str, Any]

STABLE_NAMES = {"OTEL_SEMCONV_STABILITY_OPT_IN": "http"}
"""The conventions that the gateway's own spans keep to; its default are those of before."""


def instrument(
    app: FastAPI,
    provider: TracerProvider,
    otel: Mapping[str, str],
    record_of: Callable[[Scope], Record],
    unseen: Iterable[str],
) -> None:
    """`unseen`: paths that machines ask every few seconds."""

    def began(span: Span, scope: Scope) -> None:
        record, place = record_of(scope), span.get_span_context()
        record.trace = Trace(f"{place.trace_id:032x}", f"{place.span_id:016x}", int(place.trace_flags))
        span.set_attribute("gllm.request_id", record.id)
        span.set_attribute("gllm.tenant", record.tenant)
        if scope["query_string"]:
            span.set_attribute("url.query", "")  # nobody knows what a caller writes there

    with environment({**STABLE_NAMES, **otel}):
        FastAPIInstrumentor.instrument_app(
            app,
            server_request_hook=began,
            tracer_provider=provider,
            meter_provider=NoOpMeterProvider(),
            excluded_urls=",".join(f"{path}$" for path in unseen),
            exclude_spans=["receive", "send"],
        )
