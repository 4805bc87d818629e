"""What OpenTelemetry's SDK makes of its own variables (`OTEL_*`)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter

SERVICE = "gllm"


class NoExporter(Exception):
    """The text is a sentence for the person who starts the gateway, or the engine."""


@dataclass(frozen=True)
class Batches:
    """How spans wait and travel, by the names and defaults of OTEL_BSP_*."""

    max_waiting: int
    max_size: int
    every_s: float


@dataclass(frozen=True)
class Sdk:
    provider: TracerProvider
    exporter: SpanExporter
    batches: Batches

    @classmethod
    def configured(cls, otel: Mapping[str, str], version: str, service: str = SERVICE) -> "Sdk":
        """`service`: what it is called unless `otel` says otherwise."""
        with environment(otel):
            named = OTELResourceDetector().detect().attributes
            resource = Resource.create({"service.name": service, "service.version": version, **named})
            provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            return cls(provider, _exporter(), batches_of(otel))


def _exporter() -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise NoExporter("Sending traces takes: pip install 'gllm[tracing]'. Or set ENABLE_TRACING=false.") from None
    return OTLPSpanExporter()


def batches_of(otel: Mapping[str, str]) -> Batches:
    return Batches(
        max_waiting=int(otel.get("OTEL_BSP_MAX_QUEUE_SIZE", 2_048)),
        max_size=int(otel.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
        every_s=int(otel.get("OTEL_BSP_SCHEDULE_DELAY", 5_000)) / 1e3,
    )


@contextmanager
def environment(otel: Mapping[str, str]) -> Iterator[None]:
    """The SDK takes its variables from the environment and from nowhere else. What stands in `.env` is there for as
    long as it looks.
    """
    before = {name: os.environ[name] for name in os.environ if name.startswith("OTEL_")}
    _replace(before, by=otel)
    try:
        yield
    finally:
        _replace(otel, by=before)


def _replace(old: Mapping[str, str], *, by: Mapping[str, str]) -> None:
    for name in old.keys() - by.keys():
        del os.environ[name]
    os.environ.update(by)
