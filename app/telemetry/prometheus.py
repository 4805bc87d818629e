"""Every metric name and every label. Children are kept, because looking one up costs more than counting."""

from collections.abc import Callable
from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from app.errors import ClientStalled, Outcome
from app.generation import Route
from app.telemetry.base import (
    CircuitChanged,
    CollectorChanged,
    EngineErrorSeen,
    Event,
    ReplicaChanged,
    StoreChanged,
    StreamTakenOver,
    SwapBegan,
    SwapEnded,
    TenantsRead,
    WorkerChanged,
)
from app.telemetry.record import Reason, Record

DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LATENCIES = (0.05, 0.1, 0.25, 0.5, 1, 2, 2.5, 5, 10, 30, 60)
SWAPS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
TOKENS = (10, 50, 100, 200, 500, 1000, 2000, 5000)

GENERATIONS = frozenset((Route.CHAT, Route.COMPLETIONS, Route.RESPONSES, Route.MESSAGES))
METHODS = frozenset("GET HEAD POST PUT DELETE PATCH OPTIONS TRACE CONNECT".split())
"""A server may let any word through; only these become a label."""


OPENMETRICS = "application/openmetrics-text"
"""Who accepts this format gets exemplars too: with some observations, the trace of a request that made them."""


class Metrics:
    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        requests = Counter(
            "llm_requests", "Requests by their answer", ["method", "endpoint", "status"], registry=registry
        )
        duration = Histogram(
            "llm_request_duration_seconds",
            "From the request's head to the answer's last byte",
            ["method", "endpoint"],
            buckets=DURATIONS,
            registry=registry,
        )
        latency = Histogram(
            "llm_generation_latency_seconds",
            "Until the first byte of an answer (ttft) and until its end (total)",
            ["metric_type"],
            buckets=LATENCIES,
            registry=registry,
        )
        errors = Counter("llm_engine_errors", "Failed attempts by kind", ["error_type"], registry=registry)
        outcomes = Counter("gllm_request_outcomes", "Requests by how they ended", ["outcome"], registry=registry)
        routed = Counter("gllm_routed", "Requests by why their last replica was chosen", ["reason"], registry=registry)
        self._in_progress = Gauge("llm_requests_in_progress", "Requests on their way through", registry=registry)
        self._tokens = Histogram("llm_generation_tokens", "Tokens in an answer", buckets=TOKENS, registry=registry)
        self._prompt_tokens = Counter(
            "gllm_prompt_tokens", "Tokens of prompts, as engines count them", registry=registry
        )
        self._cached_tokens = Counter(
            "gllm_cached_prompt_tokens",
            "Those of them that an engine still had in its cache, where engines tell",
            registry=registry,
        )
        self._replicas = Gauge(
            "gllm_replica_ready", "Whether a replica answers (1) or not (0)", ["replica"], registry=registry
        )
        self._tenants_refused = Gauge(
            "gllm_tenants_file_refused",
            "Whether the tenants file is bad (1), and an earlier one in force",
            registry=registry,
        )
        self._replayed = Counter(
            "gllm_replayed_requests",
            "Requests answered by an earlier one with their idempotency key",
            registry=registry,
        )
        self._queue_wait = Histogram(
            "gllm_queue_wait_seconds", "How long those waited that had to", buckets=LATENCIES, registry=registry
        )
        self._retries = Counter("gllm_retries", "Attempts on another replica", registry=registry)
        self._taken_over = Counter(
            "gllm_streams_taken_over", "Streams that went on at another replica when theirs died", registry=registry
        )
        self._slow_readers = Counter(
            "gllm_slow_readers", "Clients cut off because they stopped reading", registry=registry
        )
        self._loop_lag = Histogram(
            "gllm_event_loop_lag_seconds",
            "How late the event loop gives a task its turn",
            buckets=LAGS,
            registry=registry,
        )
        self._spans_dropped = Counter(
            "gllm_spans_dropped", "Spans of traces that no collector has taken", registry=registry
        )
        self._circuits = Gauge(
            "gllm_circuit_open",
            "Whether a replica is being given a pause (1) or not (0)",
            ["replica"],
            registry=registry,
        )
        self._workers = Gauge("gllm_workers", "Workers by the state they are in", ["state"], registry=registry)
        self._worker_states: dict[str, str] = {}
        self._swaps = Counter("gllm_swaps", "Changes of models by how they ended", ["outcome"], registry=registry)
        self._swap_running = Gauge("gllm_swap_running", "Changes of models that are carried out now", registry=registry)
        self._swap_took = Histogram(
            "gllm_swap_duration_seconds", "How long changes of models took", buckets=SWAPS, registry=registry
        )
        self._ttft = latency.labels("ttft")
        self._total = latency.labels("total")
        self._outcomes = {outcome: outcomes.labels(outcome.value) for outcome in Outcome}
        self._routed = {reason: routed.labels(reason.value) for reason in Reason}
        self._errors = cache(errors.labels)
        self._answered = cache(lambda method, endpoint, status: requests.labels(method, endpoint, str(status)))
        self._took = cache(duration.labels)
        self._store_up = cache(self._store_gauge)

    def measure(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is asked when the page is made."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def began(self, record: Record) -> None:
        self._in_progress.inc()

    def ended(self, record: Record) -> None:
        self._in_progress.dec()
        method = record.method if record.method in METHODS else "other"
        self._answered(method, record.endpoint, record.status).inc()
        self._took(method, record.endpoint).observe(record.ended - record.began)
        self._outcomes[record.outcome].inc()
        if record.error == ClientStalled.__name__:
            self._slow_readers.inc()
        if record.queued_s:
            self._queue_wait.observe(record.queued_s)
        if record.replayed:
            self._replayed.inc()
        if record.routed_by is not None:
            self._routed[record.routed_by].inc()
        if record.endpoint in GENERATIONS:
            self._generated(record)

    def _generated(self, record: Record) -> None:
        if record.first_byte:
            trace = record.trace
            exemplar = {"trace_id": trace.trace_id} if trace is not None and trace.sampled else None
            self._ttft.observe(record.first_byte - record.began, exemplar)
            self._total.observe(record.ended - record.began, exemplar)
        if record.usage is not None:
            self._tokens.observe(record.usage.completion_tokens)
            self._prompt_tokens.inc(record.usage.prompt_tokens)
            if record.usage.cached_tokens:
                self._cached_tokens.inc(record.usage.cached_tokens)

    def note(self, event: Event) -> None:
        match event:
            case EngineErrorSeen(error=error, retried=retried):
                self._errors(error).inc()
                self._retries.inc(retried)
            case StreamTakenOver():
                self._taken_over.inc()
            case ReplicaChanged(replica=replica, state="removed"):
                self._replicas.remove(replica)
                self._circuits.remove(replica)
            case ReplicaChanged(replica=replica, state=state):
                self._replicas.labels(replica).set(state == "ready")
            case TenantsRead(refused=refused):
                self._tenants_refused.set(refused)
            case CircuitChanged(replica=replica, state=state):
                self._circuits.labels(replica).set(state != "closed")
            case WorkerChanged(worker=worker, state=state):
                self._worker_became(worker, state)
            case SwapBegan():
                self._swap_running.inc()
            case SwapEnded(outcome=outcome, seconds=seconds):
                self._swap_running.dec()
                self._swaps.labels(outcome).inc()
                self._swap_took.observe(seconds)
            case CollectorChanged():
                pass  # it shows as spans that are dropped
            case StoreChanged(available=available):
                self._store_up().set(available)

    def _worker_became(self, worker: str, state: str) -> None:
        if before := self._worker_states.pop(worker, ""):
            self._workers.labels(before).dec()
        if state != "forgotten":
            self._worker_states[worker] = state
            self._workers.labels(state).inc()

    def _store_gauge(self) -> Gauge:
        """Only where there is a store: a gauge that is 0 because nothing was set would raise an alarm."""
        return Gauge("gllm_shared_store_up", "Whether the shared store answers (1) or not (0)", registry=self._registry)

    def loop_lag(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def spans_dropped(self, spans: int) -> None:
        self._spans_dropped.inc(spans)

    def page(self, accept: str = "") -> tuple[str, bytes]:
        """Its content type, and the page."""
        if OPENMETRICS in accept:
            page: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return openmetrics.CONTENT_TYPE_LATEST, page
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)
