"""The rig itself: a real Prometheus sees a real gateway and real engines, and the minute leaves its traces."""

import pytest

from tests.deploy.conftest import ON_PROMETHEUS, Lived

pytestmark = ON_PROMETHEUS


def test_every_target_is_scraped(lived: Lived) -> None:
    health = lived.prometheus.scraped()
    assert set(health.values()) == {"up"}
    assert {each.partition(" ")[0] for each in health} == {"prometheus", "gateway", "engine"}


@pytest.mark.parametrize(
    "happened",
    [
        'llm_requests_total{status="200"}',
        'gllm_request_outcomes_total{outcome="client_error"}',
        'gllm_request_outcomes_total{outcome="rate_limited"}',
        'gllm_request_outcomes_total{outcome="queue_full"}',
        'gllm_request_outcomes_total{outcome="deadline"}',
        'gllm_request_outcomes_total{outcome="interrupted"}',
        'gllm_request_outcomes_total{outcome="client_gone"}',
        "gllm_retries_total",
        "gllm_circuit_open",
        "gllm_streams_taken_over_total",
        "gllm_slow_readers_total",
        "gllm_spans_dropped_total",
        'gllm_swaps_total{outcome="done"}',
        'vllm:request_success_total{finished_reason="abort"}',
    ],
)
def test_the_minute_holds_what_it_says(lived: Lived, happened: str) -> None:
    assert any(value > 0 for series in lived.seen(happened) for _, value in series.points)


def test_exemplars_lead_to_traces_that_were_sent(lived: Lived) -> None:
    found = lived.prometheus.exemplars("llm_generation_latency_seconds_bucket", lived.minute.began, lived.minute.ended)
    sent = {span.trace_id for span in lived.stack.collector.spans}
    assert {each.labels["trace_id"] for each in found} & sent
