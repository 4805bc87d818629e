"""The metrics page: the ancestor's names with their labels, bounded series, and numbers that add up."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.errors import Outcome
from app.generation import Usage
from app.telemetry.base import EngineErrorSeen, ReplicaChanged, StoreChanged
from app.telemetry.metrics.families import DURATIONS, LATENCIES, TOKENS
from app.telemetry.prometheus import Metrics
from app.telemetry.record import Record

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
    assert found["gllm_request_outcomes_total", (("outcome", "ok"),)] == 1
    assert found["gllm_request_outcomes_total", (("outcome", "upstream_failed"),)] == 1


def test_every_outcome_is_there_from_the_start() -> None:
    """A rate over a series that appears with its first failure misses that failure."""
    found = ours(Metrics())
    assert {labels[0][1] for name, labels in found if name == "gllm_request_outcomes_total"} == set(Outcome)


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


def test_a_replica_is_ready_or_not_and_one_that_is_gone_leaves_the_page() -> None:
    metrics = Metrics()
    key = ("gllm_replica_ready", (("replica", "a"),))
    metrics.note(ReplicaChanged("a", "starting", ""))
    assert ours(metrics)[key] == 0
    metrics.note(ReplicaChanged("a", "ready", ""))
    assert ours(metrics)[key] == 1
    metrics.note(ReplicaChanged("a", "failing", "EngineUnreachable"))
    assert ours(metrics)[key] == 0
    metrics.note(ReplicaChanged("a", "removed", ""))
    assert key not in ours(metrics)
    metrics.note(ReplicaChanged("never there", "removed", ""))


def test_the_shared_store_is_up_or_not_and_unmentioned_where_there_is_none() -> None:
    metrics = Metrics()
    assert not [name for name, _ in series(metrics) if "store" in name]
    for available in (True, False, True):
        metrics.note(StoreChanged(available, ""))
        assert series(metrics)["gllm_shared_store_up", ()] == available


def test_the_page_is_what_prometheus_expects() -> None:
    metrics = told(record())
    assert metrics.page()[0].startswith("text/plain; version=")
    names = [family.name for family in text_string_to_metric_families(metrics.page()[1].decode())]
    assert len(set(names)) == len(names)
    assert {"process_cpu_seconds", "python_info"} <= set(names)
