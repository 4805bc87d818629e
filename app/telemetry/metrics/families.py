"""Every metric of the gateway: its name, its type, its labels, and a sentence of meaning. `docs/metrics.md` is made of
this, and so is the check that no dashboard asks for what nobody makes.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "info"]
Bounds = tuple[float, ...]

DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LATENCIES = (0.05, 0.1, 0.25, 0.5, 1, 2, 2.5, 5, 10, 30, 60)
FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 40, 60)
PER_TOKEN = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
SWAPS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600)
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
OWN = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
TOKENS = (10, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True)
class Family:
    name: str
    """As PromQL knows it, except that a counter's series end in `_total` and a histogram has several."""
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    bounds: Bounds = ()

    @property
    def series(self) -> tuple[str, ...]:
        """The names under which its series are asked for."""
        match self.kind:
            case "counter":
                return (f"{self.name}_total",)
            case "histogram":
                return (f"{self.name}_bucket", f"{self.name}_count", f"{self.name}_sum")
            case "info":
                return (f"{self.name}_info",)
            case "gauge":
                return (self.name,)


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(name, "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Family:
    return Family(name, "gauge", text, labels)


def _histogram(name: str, bounds: Bounds, text: str, *labels: str) -> Family:
    return Family(name, "histogram", text, labels, bounds)


# --- requests -----------------------------------------------------------------------------------------------------

REQUESTS = _counter("llm_requests", "Requests of every kind, by their answer.", "method", "endpoint", "status")
IN_PROGRESS = _gauge("llm_requests_in_progress", "Requests that have come and have not been answered to their end.")
DURATION = _histogram(
    "llm_request_duration_seconds",
    DURATIONS,
    "Time from a request's head to the last byte of its answer.",
    "method",
    "endpoint",
)
OUTCOMES = _counter(
    "gllm_request_outcomes",
    "Calls that engines answer, by how they ended; probes, documents and what operators ask are not among them.",
    "model",
    "outcome",
)
REFUSALS = _counter("gllm_refusals", "Calls that were refused with a 429 or a 503, by the code of the error.", "reason")
OVERHEAD = _histogram(
    "gllm_overhead_seconds",
    OWN,
    "The gateway's own time for a call: parsing it (intake), asking its tenant's limits (limits), finding a replica"
    " (route), writing a whole answer (relay), and their sum (total); waiting in line and for engines is not in it.",
    "phase",
)

# --- answers ------------------------------------------------------------------------------------------------------

LATENCY = _histogram(
    "llm_generation_latency_seconds",
    LATENCIES,
    "Time from a request's head to the first byte of its answer (ttft) and to its last one (total).",
    "metric_type",
)
ANSWER_TOKENS = _histogram("llm_generation_tokens", TOKENS, "Tokens in an answer.")
TTFT = _histogram(
    "gllm_time_to_first_token_seconds",
    FIRST_TOKEN,
    "Time from the head of a streamed call to its first event; answers that are replayed are left out.",
    "model",
)
TPOT = _histogram(
    "gllm_time_per_output_token_seconds",
    PER_TOKEN,
    "Time between the first event of a stream and its end, for each token but the first; answers that are replayed, and"
    " those whose client hung up, are left out.",
    "model",
)
PROMPT_TOKENS = _counter("gllm_prompt_tokens", "Tokens of prompts, as they are settled with the tenants.", "model")
CACHED_TOKENS = _counter(
    "gllm_cached_prompt_tokens", "Tokens of prompts that an engine still had in its cache, where it tells.", "model"
)
GENERATED_TOKENS = _counter("gllm_generated_tokens", "Tokens made, as they are settled with the tenants.", "model")

# --- the line -----------------------------------------------------------------------------------------------------

QUEUED = _gauge("gllm_queue_requests", "Calls that wait for a slot.", "model")
QUEUED_TOKENS = _gauge("gllm_queue_prompt_tokens", "Tokens in the prompts of those that wait.", "model")
QUEUE_AGE = _gauge("gllm_queue_oldest_seconds", "How long the call has waited that waits longest.", "model")
PLACES = _gauge("gllm_queue_places", "Calls that may wait for one model; infinite where lines have no bounds.")
QUEUE_WAIT = _histogram(
    "gllm_queue_wait_seconds", LATENCIES, "How long the calls waited that could not begin at once.", "model"
)
SLOTS = _gauge("gllm_slots", "Calls that the ready replicas may answer at once.")
SLOTS_TAKEN = _gauge("gllm_slots_taken", "Calls that replicas are answering.")

# --- tenants and limits -------------------------------------------------------------------------------------------

LIMITS_MET = _counter("gllm_rate_limits_met", "Refusals by the limit that was reached.", "limit")
TENANT_REQUESTS = _counter(
    "gllm_tenant_requests", "Calls that engines answer, by who asked and how they ended.", "tenant", "outcome"
)
TENANT_TOKENS = _counter("gllm_tenant_tokens", "Tokens as they are settled with each tenant.", "tenant", "kind")
RESERVATIONS = _gauge("gllm_reservations", "Reservations of tenants' limits that are held by running calls.")
TENANTS_REFUSED = _gauge(
    "gllm_tenants_file_refused", "Whether the tenants file is bad (1), so that an earlier one is in force."
)

# --- engines that fail --------------------------------------------------------------------------------------------

ENGINE_ERRORS = _counter("llm_engine_errors", "Attempts at engines that failed, by the kind of failure.", "error_type")
RETRIES = _counter("gllm_retries", "Attempts that were made on another replica because one had failed.")
RETRY_BUDGET = _gauge(
    "gllm_retry_budget", "Retries that may still be made now; 0 says that the budget is spent, nothing that it is off."
)
RETRIES_DENIED = _counter("gllm_retries_denied", "Retries that were not made because the budget was spent.")
HEDGES = _counter(
    "gllm_hedges", "Second attempts beside a stream that was slow to begin, by whether they began first.", "result"
)
CIRCUIT_OPEN = _gauge(
    "gllm_circuit_open", "Whether a replica is being given a pause (1), or is tried after one.", "replica"
)
CIRCUIT_OPENINGS = _counter("gllm_circuit_openings", "Pauses that a replica was given after failures.", "replica")

# --- replicas -----------------------------------------------------------------------------------------------------

ROUTED = _counter("gllm_routed", "Calls by why their last replica was chosen.", "policy", "reason")
READY = _gauge("gllm_replica_ready", "Whether a replica takes calls (1) or not (0).", "replica")
RUNNING = _gauge("gllm_replica_running", "Calls of this gateway that a replica is answering.", "replica")
REPLICA_SLOTS = _gauge("gllm_replica_slots", "Calls that this gateway lets a replica answer at once.", "replica")
ENGINE_RUNNING = _gauge(
    "gllm_replica_engine_running", "Sequences that the engine says are in its batch, whoever sent them.", "replica"
)
ENGINE_WAITING = _gauge(
    "gllm_replica_engine_waiting", "Sequences that the engine says wait for its batch, whoever sent them.", "replica"
)
ENGINE_KV = _gauge(
    "gllm_replica_kv_cache_ratio",
    "The part of its KV cache that the engine says is in use (1 is all of it).",
    "replica",
)

# --- streams ------------------------------------------------------------------------------------------------------

STREAMS_OPEN = _gauge("gllm_streams_open", "Streams that have begun and not ended.")
STREAMS = _counter("gllm_streams", "Streams that had begun, by how they ended.", "outcome")
TAKEN_OVER = _counter("gllm_streams_taken_over", "Streams that went on at another replica when theirs died.")
SLOW_READERS = _counter("gllm_slow_readers", "Clients that were cut off because they stopped reading.")
EVENT_DELAY = _histogram(
    "gllm_event_delay_seconds",
    OWN,
    "Time from an event's arrival to its being written to the client, for one event in 64.",
)

# --- idempotency --------------------------------------------------------------------------------------------------

IDEMPOTENCY = _counter("gllm_idempotency", "Calls with an idempotency key, by what became of them.", "result")
KEYED_RUNS = _gauge("gllm_keyed_runs", "Executions for an idempotency key that are running.")

# --- what is written down -----------------------------------------------------------------------------------------

LEDGER_UNWRITTEN = _gauge("gllm_ledger_unwritten", "Rows of usage that are in memory and not yet in the file.")
LEDGER_AGE = _gauge("gllm_ledger_age_seconds", "Time since all usage could be written to the file.")
LEDGER_FAILURES = _counter("gllm_ledger_failures", "Times that usage could not be written or shared.")
STORE_UP = _gauge("gllm_shared_store_up", "Whether the shared store answers (1); only there with a REDIS_URL.")

# --- the cluster --------------------------------------------------------------------------------------------------

WORKERS = _gauge("gllm_workers", "Workers by the state they are in.", "state")
GPUS = _gauge("gllm_gpus_leased", "GPUs that workers hold, by the state of the worker.", "state")
SWAP_COUNT = _counter("gllm_swaps", "Changes of models, by how they ended.", "outcome")
SWAP_RUNNING = _gauge("gllm_swap_running", "Changes of models that are being carried out.")
SWAP_TOOK = _histogram("gllm_swap_duration_seconds", SWAPS, "How long changes of models took.")

# --- the gateway itself -------------------------------------------------------------------------------------------

LOOP_LAG = _histogram("gllm_event_loop_lag_seconds", LAGS, "How late the event loop gave a task its turn.")
CONNECTIONS = _gauge("gllm_connections", "Connections of clients that are open.")
MOST_CONNECTIONS = _gauge("gllm_connections_most", "Connections of clients that may be open at once.")
CONNECTIONS_REFUSED = _counter("gllm_connections_refused", "Connections that were one too many, and turned away.")
SPANS_DROPPED = _counter("gllm_spans_dropped", "Spans of traces that no collector has taken.")
LINES_DROPPED = _counter("gllm_log_lines_dropped", "Lines of the log that could not be written.")
BUILD = _gauge(
    "gllm_build_info",
    "Always 1: the version, the kind of engine and the routing policy.",
    "version",
    "engine",
    "policy",
)

GROUPS: dict[str, tuple[Family, ...]] = {
    "Requests": (REQUESTS, IN_PROGRESS, DURATION, OUTCOMES, REFUSALS, OVERHEAD),
    "Answers": (TTFT, TPOT, LATENCY, ANSWER_TOKENS, PROMPT_TOKENS, CACHED_TOKENS, GENERATED_TOKENS),
    "The line": (QUEUED, QUEUED_TOKENS, QUEUE_AGE, PLACES, QUEUE_WAIT, SLOTS, SLOTS_TAKEN),
    "Tenants and limits": (LIMITS_MET, TENANT_REQUESTS, TENANT_TOKENS, RESERVATIONS, TENANTS_REFUSED),
    "Engines that fail": (
        ENGINE_ERRORS,
        RETRIES,
        RETRY_BUDGET,
        RETRIES_DENIED,
        HEDGES,
        CIRCUIT_OPEN,
        CIRCUIT_OPENINGS,
    ),
    "Replicas": (ROUTED, READY, RUNNING, REPLICA_SLOTS, ENGINE_RUNNING, ENGINE_WAITING, ENGINE_KV),
    "Streams": (STREAMS_OPEN, STREAMS, TAKEN_OVER, SLOW_READERS, EVENT_DELAY),
    "Idempotency": (IDEMPOTENCY, KEYED_RUNS),
    "What is written down": (LEDGER_UNWRITTEN, LEDGER_AGE, LEDGER_FAILURES, STORE_UP),
    "The cluster": (WORKERS, GPUS, SWAP_COUNT, SWAP_RUNNING, SWAP_TOOK),
    "The gateway itself": (
        LOOP_LAG,
        CONNECTIONS,
        MOST_CONNECTIONS,
        CONNECTIONS_REFUSED,
        SPANS_DROPPED,
        LINES_DROPPED,
        BUILD,
    ),
}
"""In the order of the page and of its document."""
