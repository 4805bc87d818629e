"""The metrics page: the ancestor's names with their labels, bounded series, and numbers that add up."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from app.cluster.fleet import MAKES_WAY
from app.errors import ClusterError, Outcome, TooManyConnections
from app.generation import Call, Route, Usage
from app.reliability.allowance import CODES
from app.telemetry.base import CircuitChanged, EngineErrorSeen, ReplicaChanged
from app.telemetry.metrics.families import DURATIONS, LATENCIES, QUEUED, TOKENS
from app.telemetry.metrics.labels import LOOKED_FOR_ROOM, MOST_MODELS, REASONS
from app.telemetry.metrics.tallies import MOST_KEPT, Kept, Reading
from app.telemetry.prometheus import OPENMETRICS, Metrics
from app.telemetry.record import Attempt, Keyed, Reason, Record
from app.tenant import Tenant
from app.trace import SAMPLED, Trace
from app.wire.errors import ERRORS

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def series(metrics: Metrics) -> Series:
    families = text_string_to_metric_families(metrics.page()[1].decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def ours(metrics: Metrics) -> Series:
    """Without the process's own, which grow as they like."""
    return {key: value for key, value in series(metrics).items() if key[0].startswith(("llm_", "gllm_"))}


def record(**fields: Any) -> Record:
    usual = {"id": "r", "endpoint": "/v1/chat/completions", "method": "POST", "began": 100.0, "ended": 103.0}
    return Record(**{**usual, "status": 200, **fields})


def told(*records: Record) -> Metrics:
    metrics = Metrics()
    for each in records:
        metrics.began(each)
        metrics.ended(each)
    return metrics


ANCESTORS = {
    "llm_requests": ("counter", {"method", "endpoint", "status"}, None),
    "llm_requests_in_progress": ("gauge", set(), None),
    "llm_request_duration_seconds": ("histogram", {"method", "endpoint"}, DURATIONS),
    "llm_generation_tokens": ("histogram", set(), TOKENS),
    "llm_generation_latency_seconds": ("histogram", {"metric_type"}, LATENCIES),
    "llm_engine_errors": ("counter", {"error_type"}, None),
}


@pytest.mark.parametrize("name", ANCESTORS)
def test_the_ancestors_names_keep_their_types_labels_and_buckets(name: str) -> None:
    kind, labels, buckets = ANCESTORS[name]
    metrics = told(record(first_byte=101.0, usage=Usage(7, 4)))
    metrics.note(EngineErrorSeen("r", "a", "EngineFailed", "", retried=False))
    families = {family.name: family for family in text_string_to_metric_families(metrics.page()[1].decode())}
    family = families[name]
    assert family.type == kind
    samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    assert samples
    assert {label for sample in samples for label in sample.labels} - {"le"} == labels
    if buckets is not None:
        bounds = {float(sample.labels["le"]) for sample in samples if "le" in sample.labels}
        assert bounds == {*buckets, float("inf")}


@pytest.mark.parametrize(
    ("ancestor", "ours"),
    [((10, 50, 100, 200, 500, 1000, 2000, 5000), TOKENS), ((0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0), LATENCIES)],
)
def test_a_dashboard_that_reads_the_ancestors_buckets_finds_them(
    ancestor: tuple[float, ...], ours: tuple[float, ...]
) -> None:
    assert set(ancestor) <= set(ours)
    assert sorted(ours) == list(ours)


def test_a_request_is_counted_once_with_its_answer() -> None:
    metrics = told(record(first_byte=101.0, usage=Usage(7, 40)), record(status=502, outcome=Outcome.UPSTREAM_FAILED))
    found = ours(metrics)
    where = (("endpoint", "/v1/chat/completions"), ("method", "POST"))
    assert found["llm_requests_total", (*where, ("status", "200"))] == 1
    assert found["llm_requests_total", (*where, ("status", "502"))] == 1
    assert found["llm_request_duration_seconds_count", where] == 2
    assert found["llm_request_duration_seconds_sum", where] == 6
    assert found["llm_generation_latency_seconds_sum", (("metric_type", "ttft"),)] == 1
    assert found["llm_generation_latency_seconds_sum", (("metric_type", "total"),)] == 3
    assert found["llm_generation_latency_seconds_count", (("metric_type", "total"),)] == 1
    assert found["llm_generation_tokens_sum", ()] == 40
    assert found["gllm_request_outcomes_total", (("model", "none"), ("outcome", "ok"))] == 1
    assert found["gllm_request_outcomes_total", (("model", "none"), ("outcome", "upstream_failed"))] == 1


def test_what_can_happen_is_there_with_0_before_it_does() -> None:
    """A rate over a series that appears with its first failure misses that failure."""
    metrics = Metrics(policy="prefix")
    metrics.know(lambda: {"demo": None})
    metrics.note(ReplicaChanged("a", "starting", ""))
    found = {key: value for key, value in ours(metrics).items() if not key[0].startswith("gllm_build")}
    assert set(found.values()) == {0}
    for name, labels, values in (
        ("gllm_request_outcomes_total", {"model": "demo"}, {"outcome": set(Outcome)}),
        ("gllm_request_outcomes_total", {"model": "none"}, {"outcome": set(Outcome)}),
        ("gllm_streams_total", {}, {"outcome": set(Outcome)}),
        ("gllm_refusals_total", {}, {"reason": REASONS}),
        ("gllm_routed_total", {"policy": "prefix"}, {"reason": set(Reason)}),
        ("gllm_idempotency_total", {}, {"result": set(Keyed)}),
        ("gllm_hedges_total", {}, {"result": {"won", "lost"}}),
        ("gllm_rate_limits_met_total", {}, {"limit": {"requests", "tokens", "concurrency", "logins"}}),
        ("gllm_circuit_openings_total", {}, {"replica": {"a"}}),
        ("gllm_time_to_first_token_seconds_count", {}, {"model": {"demo"}}),
    ):
        ((label, expected),) = values.items()
        there = {dict(each)[label] for key, each in found if key == name and labels.items() <= dict(each).items()}
        assert there == expected, name


def test_requests_in_progress_return_to_zero() -> None:
    metrics = Metrics()
    records = [record() for _ in range(5)]
    for each in records:
        metrics.began(each)
    assert ours(metrics)["llm_requests_in_progress", ()] == 5
    for each in records:
        metrics.ended(each)
    assert ours(metrics)["llm_requests_in_progress", ()] == 0


def test_what_generates_nothing_is_not_among_the_generations() -> None:
    """Embeddings and tokenizing would drag every percentile of the generations down."""
    for endpoint in ("/v1/embeddings", "/tokenize", "/detokenize", "/health"):
        found = ours(told(record(endpoint=endpoint, first_byte=101.0, usage=Usage(7, 0))))
        assert found["llm_generation_tokens_count", ()] == 0
        assert found["llm_generation_latency_seconds_count", (("metric_type", "ttft"),)] == 0


def test_a_method_is_a_label_only_if_it_is_one() -> None:
    metrics = told(*(record(method=f"JUNK{n}") for n in range(1_000)), record(method="GET"))
    methods = {value for _, labels in ours(metrics) for name, value in labels if name == "method"}
    assert methods == {"GET", "other"}


def test_engine_errors_are_counted_by_kind_whether_or_not_they_were_retried() -> None:
    metrics = Metrics()
    for retried in (True, False):
        metrics.note(EngineErrorSeen("r", "a", "EngineBusy", "anything at all", retried))
    assert ours(metrics)["llm_engine_errors_total", (("error_type", "EngineBusy"),)] == 2


def test_a_replica_that_is_gone_leaves_the_page() -> None:
    metrics = Metrics()
    key = ("gllm_circuit_openings_total", (("replica", "a"),))
    metrics.note(ReplicaChanged("a", "starting", ""))
    for state in ("open", "half_open", "open", "closed"):
        metrics.note(CircuitChanged("a", state))
    assert ours(metrics)[key] == 2
    metrics.note(ReplicaChanged("a", "removed", ""))
    assert key not in ours(metrics)
    metrics.note(ReplicaChanged("never there", "removed", ""))


def test_only_calls_that_engines_answer_have_outcomes() -> None:
    for endpoint in ("/health", "/v1/models", "/admin/usage", "other"):
        assert gained(record(endpoint=endpoint, status=503), "gllm_request_outcomes_total", "gllm_refusals_total") == {}
    for route in Route:
        assert gained(record(endpoint=route.value), "gllm_request_outcomes_total") == {"none ok": 1}


def gained(told_of: Record, *names: str, know: tuple[str, ...] = ("demo",)) -> dict[str, float]:
    """What is not 0 any more, by the values of its labels."""
    metrics = Metrics(policy="session")
    metrics.know(lambda: dict.fromkeys(know))
    metrics.began(told_of)
    metrics.ended(told_of)
    found = ours(metrics)
    return {
        " ".join(value for _, value in labels): number
        for (name, labels), number in found.items()
        if name in names and number
    }


def test_outcomes_are_told_by_model_and_a_model_that_is_not_served_is_no_label() -> None:
    for model, label in (("demo", "demo"), ("", "none"), ("made-up", "other"), ("none", "other"), ("other", "other")):
        ended = record(model=model, outcome=Outcome.DEADLINE)
        assert gained(ended, "gllm_request_outcomes_total") == {f"{label} deadline": 1}


def test_a_call_is_counted_for_its_tenant() -> None:
    assert gained(record(tenant="acme"), "gllm_tenant_requests_total") == {"ok acme": 1}
    assert gained(record(tenant="", outcome=Outcome.CLIENT_ERROR), "gllm_tenant_requests_total") == {
        "client_error none": 1
    }


@pytest.mark.parametrize(
    ("status", "code", "refused", "limit"),
    [
        (503, "queue_full", "queue_full", None),
        (503, "circuit_open", "circuit_open", None),
        (503, "no_workers", "other", None),
        (429, "request_rate", "request_rate", "requests"),
        (429, "token_quota", "token_quota", "tokens"),
        (429, "request_larger_than_limit", "request_larger_than_limit", "tokens"),
        (429, "concurrency", "concurrency", "concurrency"),
        (429, "too_many_failed_logins", "too_many_failed_logins", "logins"),
        (502, "engine_failed", None, None),
        (504, "deadline_exceeded", None, None),
        (401, "invalid_api_key", None, None),
        (200, "engine_interrupted", None, None),
    ],
)
def test_refusals_are_told_by_their_codes(status: int, code: str, refused: str | None, limit: str | None) -> None:
    ended = record(status=status, error="Anything", code=code)
    assert gained(ended, "gllm_refusals_total") == ({refused: 1} if refused else {})
    assert gained(ended, "gllm_rate_limits_met_total") == ({limit: 1} if limit else {})


@pytest.mark.parametrize(("seconds", "within"), [(2.5, 1), (2.51, 0)])
def test_what_just_keeps_a_promise_is_in_its_bucket(seconds: float, within: int) -> None:
    found = ours(told(record(**{**STREAM, "first_byte": 100.0 + seconds, "model": "demo"})))
    assert found["gllm_time_to_first_token_seconds_bucket", (("le", "2.5"), ("model", "demo"))] == within


def test_every_error_with_which_a_call_can_be_refused_is_a_reason() -> None:
    refusing = {
        row.code for kind, row in ERRORS.items() if row.status in (429, 503) and not issubclass(kind, ClusterError)
    }
    refusing.remove(ERRORS[TooManyConnections].code)  # nothing has been asked: connections are counted by themselves
    assert refusing <= REASONS
    assert {MAKES_WAY, *CODES.values()} <= REASONS


STREAM = {"model": "demo", "stream": True, "first_byte": 101.0}


def test_a_stream_tells_its_first_token_and_its_pace() -> None:
    ended = record(**STREAM, usage=Usage(7, 5))
    assert gained(ended, "gllm_time_to_first_token_seconds_sum") == {"demo": 1.0}
    assert gained(ended, "gllm_time_per_output_token_seconds_sum") == {"demo": 0.5}
    assert gained(ended, "gllm_streams_total") == {"ok": 1}


@pytest.mark.parametrize(
    ("fields", "first", "pace"),
    [
        ({"stream": False}, 0, 0),
        ({"first_byte": 0.0}, 0, 0),
        ({"replayed": True}, 0, 0),
        ({"usage": Usage(7, 1)}, 1, 0),
        ({"usage": None}, 1, 0),
        ({"outcome": Outcome.CLIENT_GONE}, 1, 0),
        ({"outcome": Outcome.INTERRUPTED}, 1, 1),
        ({"endpoint": "/v1/embeddings"}, 0, 0),
    ],
)
def test_what_says_nothing_of_an_engines_pace_is_left_out(fields: dict[str, Any], first: int, pace: int) -> None:
    ended = record(**{**STREAM, "usage": Usage(7, 5), **fields})
    assert gained(ended, "gllm_time_to_first_token_seconds_count").get("demo", 0) == first
    assert gained(ended, "gllm_time_per_output_token_seconds_count").get("demo", 0) == pace


def test_streams_are_told_by_how_they_ended_once_they_had_begun() -> None:
    for outcome in Outcome:
        assert gained(record(**STREAM, outcome=outcome), "gllm_streams_total") == {outcome.value: 1}
        assert gained(record(stream=True, outcome=outcome), "gllm_streams_total") == {}


def test_streams_are_open_from_their_first_byte_to_their_end() -> None:
    metrics, stream, whole = Metrics(), record(stream=True), record(first_byte=101.0)
    metrics.began(stream)
    metrics.began(whole)
    assert ours(metrics)["gllm_streams_open", ()] == 0
    stream.first_byte = 101.0
    assert ours(metrics)["gllm_streams_open", ()] == 1
    metrics.ended(stream)
    assert ours(metrics)["gllm_streams_open", ()] == 0


def test_a_calls_own_time_is_told_by_phase_without_its_waiting() -> None:
    moments = {"received": 100.5, "parsed": 100.75, "allowed": 101.25, "admitted": 105.75}
    waited = {"waits": ((101.5, 105.5),), "queued_s": 4.0}
    tries = (Attempt("a", 106.25, ended=108.0),)
    whole = record(**moments, **waited, tries=tries, first_byte=108.0, ended=108.125)
    phases = {"intake": 0.25, "limits": 0.5, "route": 1.0, "relay": 0.125}
    assert gained(whole, "gllm_overhead_seconds_sum") == {**phases, "total": sum(phases.values())}
    stream = record(**moments, **waited, tries=tries, first_byte=107.0, ended=108.125, stream=True)
    del phases["relay"]
    assert gained(stream, "gllm_overhead_seconds_sum") == {**phases, "total": sum(phases.values())}


def test_own_time_is_told_as_far_as_a_call_has_come() -> None:
    assert gained(record(), "gllm_overhead_seconds_count") == {}
    assert gained(record(received=100.5, parsed=100.75), "gllm_overhead_seconds_count") == {"intake": 1}
    later = (Attempt("a", 101.0, ended=102.0), Attempt("b", 104.0, ended=105.0))
    moved = record(received=100.0, parsed=100.0, allowed=100.5, tries=later, waits=((102.0, 103.5),))
    assert gained(moved, "gllm_overhead_seconds_sum")["route"] == 0.5, "what it waited later is not the first's"


def test_a_second_attempt_beside_the_first_has_won_or_lost() -> None:
    first, won = Attempt("a", 1.0, outrun=True), Attempt("b", 2.0, beside=True)
    assert gained(record(replica="b", tries=(first, won)), "gllm_hedges_total") == {"won": 1}
    for lost in (Attempt("b", 2.0, beside=True, outrun=True), Attempt("b", 2.0, beside=True, error="EngineFailed")):
        assert gained(record(replica="a", tries=(Attempt("a", 1.0), lost)), "gllm_hedges_total") == {"lost": 1}
    assert (
        gained(record(replica="b", tries=(Attempt("a", 1.0, error="X"), Attempt("b", 2.0))), "gllm_hedges_total") == {}
    )


def test_what_became_of_a_key_is_told_once() -> None:
    for result in Keyed:
        assert gained(record(keyed=result), "gllm_idempotency_total") == {result.value: 1}
    assert gained(record(), "gllm_idempotency_total") == {}


def test_what_was_used_is_told_by_model_and_by_tenant() -> None:
    metrics = Metrics()
    metrics.know(lambda: {"demo": None})
    for model in ("demo", "gone"):
        call = Call("r", Route.CHAT, model, b"{}", 1e9, tenant=Tenant("acme"))
        metrics.settled(call, Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=6))
    found = ours(metrics)
    for model in ("demo", "other"):
        assert found["gllm_prompt_tokens_total", (("model", model),)] == 10
        assert found["gllm_cached_prompt_tokens_total", (("model", model),)] == 6
        assert found["gllm_generated_tokens_total", (("model", model),)] == 4
    assert found["gllm_tenant_tokens_total", (("kind", "prompt"), ("tenant", "acme"))] == 20
    assert found["gllm_tenant_tokens_total", (("kind", "completion"), ("tenant", "acme"))] == 8


def test_a_model_that_left_the_page_is_counted_from_nothing_when_it_is_back() -> None:
    models: dict[str, int | None] = {}
    metrics = Metrics()
    metrics.know(lambda: models)

    def call(model: str) -> None:
        metrics.ended(record(model=model, tenant="acme"))
        metrics.settled(Call("r", Route.CHAT, model, b"{}", 1e9, tenant=Tenant("acme")), Usage(10, 4))

    def counted(name: str, **labels: str) -> float | None:
        return ours(metrics).get((name, tuple(sorted(labels.items()))))

    for number in range(MOST_MODELS + 1):  # the last one finds room where the first has left it
        models.pop("0", None) if number == MOST_MODELS else None
        models[str(number)] = None
        call(str(number))
    assert counted("gllm_request_outcomes_total", model="0", outcome="ok") is None
    models["0"] = models.pop("1")
    for _ in range(LOOKED_FOR_ROOM):
        metrics.ended(record(model="0", tenant="acme"))
    call("0")
    assert counted("gllm_request_outcomes_total", model="1", outcome="ok") is None
    again = counted("gllm_request_outcomes_total", model="0", outcome="ok")
    other = counted("gllm_request_outcomes_total", model="other", outcome="ok")
    assert again is not None
    assert other is not None
    assert again + other == LOOKED_FOR_ROOM + 1
    assert counted("gllm_prompt_tokens_total", model="0") == 10
    assert counted("gllm_generated_tokens_total", model="0") == 4
    assert counted("gllm_tenant_tokens_total", tenant="acme", kind="prompt") == 10 * (MOST_MODELS + 2)


def test_what_is_kept_at_hand_is_bounded_and_never_wrong() -> None:
    found: list[int] = []

    def double(number: int) -> int:
        found.append(number)
        return 2 * number

    kept = Kept(double)
    for _ in range(2):
        assert [kept[number] for number in range(MOST_KEPT)] == list(range(0, 2 * MOST_KEPT, 2))
    assert len(found) == len(kept) == MOST_KEPT
    assert kept[MOST_KEPT] == 2 * MOST_KEPT
    assert len(kept) == 1


def parsed(page: str) -> list[Metric]:
    return list(openmetrics(page))  # type: ignore[no-untyped-call]


SAMPLED_TRACE = Trace("a" * 32, "b" * 16, SAMPLED)


@pytest.mark.parametrize("name", ["gllm_time_to_first_token_seconds", "gllm_time_per_output_token_seconds"])
@pytest.mark.parametrize("sampled", [True, False])
def test_observations_of_sampled_requests_carry_their_trace(name: str, sampled: bool) -> None:
    trace = SAMPLED_TRACE if sampled else Trace("a" * 32, "b" * 16, 0)
    content_type, page = told(record(**STREAM, usage=Usage(7, 5), trace=trace)).page(OPENMETRICS)
    assert content_type.startswith(OPENMETRICS)
    families = {family.name: family for family in parsed(page.decode())}
    found = [sample.exemplar for sample in families[name].samples if sample.exemplar]
    assert [exemplar.labels for exemplar in found] == ([{"trace_id": "a" * 32}] if sampled else [])
    for exemplar in found:
        assert exemplar.value in (1.0, 0.5)
        assert str(exemplar.timestamp).startswith(str(datetime.now(UTC).timestamp())[:4])


def test_both_formats_hold_the_same_series() -> None:
    metrics = told(record(**STREAM, usage=Usage(7, 5), trace=SAMPLED_TRACE))
    plain = {line.split(" ")[0] for line in metrics.page()[1].decode().splitlines() if line.startswith(("llm", "gllm"))}
    rich = {
        line.split(" ")[0]
        for line in metrics.page(OPENMETRICS)[1].decode().splitlines()
        if line.startswith(("llm", "gllm"))
    }
    assert plain == rich


def test_a_reading_that_changes_while_it_is_read_is_read_again() -> None:
    metrics, looks = Metrics(), list[int]()

    def read() -> Iterator[Reading]:
        yield Reading(QUEUED, 1, ("demo",))
        looks.append(1)
        if len(looks) < 3:
            raise RuntimeError("dictionary changed size during iteration")
        yield Reading(QUEUED, 2, ("other",))

    metrics.measure(read)
    assert ours(metrics)["gllm_queue_requests", (("model", "demo"),)] == 1
    assert ours(metrics)["gllm_queue_requests", (("model", "other"),)] == 2


def test_the_page_can_be_made_while_requests_are_told() -> None:
    """By another thread, again and again: nothing breaks, and nothing is lost."""
    metrics, over = Metrics(), threading.Event()
    models: dict[str, int | None] = {str(number): None for number in range(200)}
    metrics.know(lambda: models)
    failures: list[BaseException] = []

    def scrape() -> None:
        while not over.is_set():
            try:
                metrics.page()
            except BaseException as error:
                failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        for number in range(5_000):
            each = record(model=str(number % 200), tenant=str(number % 300), method="GET", status=number % 500)
            metrics.began(each)
            metrics.ended(each)
            metrics.note(ReplicaChanged(str(number), "ready", ""))
            metrics.note(ReplicaChanged(str(number), "removed", ""))
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert failures == []
    found = ours(metrics)
    assert sum(value for (name, _), value in found.items() if name == "gllm_request_outcomes_total") == 5_000
    assert sum(value for (name, _), value in found.items() if name == "llm_requests_total") == 5_000


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend() -> None:
    _, page = told(record(**STREAM, usage=Usage(7, 5))).page()
    checked = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, timeout=30, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_page_is_what_prometheus_expects() -> None:
    metrics = told(record())
    assert metrics.page()[0].startswith("text/plain; version=")
    names = [family.name for family in text_string_to_metric_families(metrics.page()[1].decode())]
    assert len(set(names)) == len(names)
    assert {"process_cpu_seconds", "python_info"} <= set(names)
