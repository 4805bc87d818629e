"""One span for each request that the model works for, named and measured as vLLM's: `llm_request`. It hangs below the
attempt of the gateway that sent it, and says what only an engine knows (docs/adr/0021).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanKind

from app.clock import Clock
from app.engines.transformers.exchange import Exchange
from app.engines.transformers.record import Record, Work
from app.generation import Route
from app.telemetry.tracing.maker import Attributes, Maker
from app.telemetry.tracing.outbox import Outbox
from app.telemetry.tracing.places import Places
from app.telemetry.tracing.sdk import Sdk
from app.telemetry.tracing.spans import OPERATIONS
from app.wire.headers import trace_context

log = logging.getLogger(__name__)

NAME = "llm_request"
PROVIDER = "transformers"

TRACED: Mapping[str, Route] = {route.value: route for route in (Route.CHAT, Route.COMPLETIONS, Route.EMBEDDINGS)}
"""By path: what the model works for. Neither probes nor what is only counted."""


class Tracer:
    def __init__(self, sdk: Sdk, served: str, clock: Clock, unix_now: Clock, on_dropped: Callable[[int], None]) -> None:
        """`served`: the model's own name; `on_dropped`, as `Outbox` has it."""
        self._places = Places(sdk.provider.sampler)
        self._spans = Spans(sdk.provider.resource, served, clock, unix_now)
        self._clock = clock
        self._outbox = Outbox(sdk.exporter, sdk.batches, self._spans.of, lambda record: 1, on_dropped, _say)

    @contextmanager
    def telling(self, exchange: Exchange) -> Iterator[None]:
        """Within the block it is answered. Then it is told, if anybody keeps it."""
        route = TRACED.get(exchange.scope["path"])
        if route is None:
            yield
            return
        trace = self._places.begin(trace_context(dict(exchange.scope["headers"])), NAME)
        began = self._clock()
        try:
            yield
        finally:
            if trace.sampled:
                self._outbox.put(Record.of(exchange, trace, route, began, self._clock()))

    def close(self, limit_s: float) -> None:
        self._outbox.close(limit_s)


class Spans:
    def __init__(self, resource: Resource, served: str, clock: Clock, unix_now: Clock) -> None:
        self._maker = Maker(resource)
        self._served = served
        self._clock = clock
        self._unix_now = unix_now

    def of(self, record: Record) -> list[ReadableSpan]:
        to_unix_s = self._unix_now() - self._clock()
        said: Attributes = {
            "http.route": record.route.value,
            "http.response.status_code": record.status,
            "gen_ai.operation.name": OPERATIONS[record.route],
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.response.model": self._served,
            "gllm.request_id": record.id,
        }
        if record.model:
            said["gen_ai.request.model"] = record.model
        if record.answer_id:
            said["gen_ai.response.id"] = record.answer_id
        if record.error:
            said["error.type"] = record.error
        if record.prompt_tokens:
            said["gen_ai.usage.input_tokens"] = record.prompt_tokens
        events: tuple[Event, ...] = ()
        if (work := record.work) is not None:
            _tell_order(work, said)
            _tell_times(work, record.ended, said)
            if work.first_token is not None:
                events = (Event("first_token", timestamp=_ns(work.first_token + to_unix_s)),)
        return [
            self._maker.span(
                NAME,
                record.trace,
                _ns(record.began + to_unix_s),
                _ns(record.ended + to_unix_s),
                said,
                kind=SpanKind.SERVER,
                failed=record.status >= 500 or record.interrupted,
                events=events,
                parent_is_remote=True,
            )
        ]


def _tell_order(work: Work, said: Attributes) -> None:
    said["gen_ai.request.max_tokens"] = work.max_tokens
    said["gen_ai.request.temperature"] = work.temperature
    said["gen_ai.request.top_p"] = work.top_p
    said["gen_ai.response.finish_reasons"] = work.finishes
    said["gen_ai.usage.input_tokens"] = work.prompt_tokens
    said["gen_ai.usage.output_tokens"] = work.produced
    if work.cached_tokens:
        said["gen_ai.usage.cache_read.input_tokens"] = work.cached_tokens
    if work.choices != 1:
        said["gen_ai.request.choice.count"] = work.choices
    if work.stream:
        said["gen_ai.request.stream"] = True


def _tell_times(work: Work, ended: float, said: Attributes) -> None:
    """In seconds, under vLLM's names. What it did not come to is not told."""
    said["gen_ai.latency.e2e"] = ended - work.arrived
    said["gen_ai.latency.time_in_queue"] = (ended if work.started is None else work.started) - work.arrived
    if work.started is None or work.first_token is None or work.last_token is None:
        return
    said["gen_ai.latency.time_to_first_token"] = work.first_token - work.arrived
    said["gen_ai.latency.time_in_model_prefill"] = work.first_token - work.started
    said["gen_ai.latency.time_in_model_decode"] = work.last_token - work.first_token
    said["gen_ai.latency.time_in_model_inference"] = work.last_token - work.started


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)


def _say(taken: bool, reason: str) -> None:
    if taken:
        log.warning("The collector takes traces again.")
    else:
        log.warning("The collector takes no traces, which are dropped: %s", reason)
