"""The collector's configuration: all that it names is there and used, and it agrees with those who speak to it."""

import re
from pathlib import Path
from typing import Any

import yaml
from opentelemetry.sdk.resources import Resource

from app.generation import Route
from app.settings.otel import DEFAULT_ENDPOINT
from app.telemetry.record import Attempt, Record
from app.telemetry.tracing.sdk import batches_of
from app.telemetry.tracing.spans import Spans
from app.trace import Trace
from deploy.slo import TTFT_S

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "otel" / "collector.yml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICE = COMPOSE["services"]["otel-collector"]
SAMPLING: dict[str, Any] = FILE["processors"]["tail_sampling"]
POLICIES: dict[str, Any] = {each["name"]: each[each["type"]] for each in SAMPLING["policies"]}


def test_every_part_is_used_and_every_used_part_is_there() -> None:
    used = FILE["service"]["pipelines"]["traces"]
    for kind in ("receivers", "processors", "exporters"):
        assert sorted(used[kind]) == sorted(FILE[kind])
    assert list(FILE["extensions"]) == FILE["service"]["extensions"]


def test_every_part_has_a_word_of_why() -> None:
    lines = TEXT.splitlines()
    parts = [f"  {name}:" for name in FILE["processors"]] + ["receivers:", "exporters:", "extensions:", "  telemetry:"]
    for part in parts:
        (at,) = [number for number, line in enumerate(lines) if line.startswith(part)]
        assert lines[at - 1].lstrip().startswith("#") or lines[at + 1].lstrip().startswith("#"), part


def test_memory_is_looked_after_first_and_batches_are_made_last() -> None:
    assert FILE["service"]["pipelines"]["traces"]["processors"] == ["memory_limiter", "tail_sampling", "batch"]
    limiter = FILE["processors"]["memory_limiter"]
    assert SERVICE["mem_limit"] == "512m"
    assert limiter["spike_limit_mib"] < limiter["limit_mib"] <= 0.8 * 512


def test_it_decides_when_every_process_has_sent_its_part() -> None:
    assert SAMPLING["decision_wait"] == "10s"
    assert batches_of({}).every_s + 4 < 10
    assert min(SAMPLING["decision_cache"].values()) >= 10 * SAMPLING["num_traces"]


def test_failed_late_and_slow_ones_are_kept_and_some_of_the_rest() -> None:
    assert POLICIES["failed"] == {"status_codes": ["ERROR"]}
    assert POLICIES["slow"]["threshold_ms"] > 1_000 * TTFT_S
    assert 0 < POLICIES["some"]["sampling_percentage"] < 100
    assert set(POLICIES) == {"failed", "late", "slow", "some"}


def test_late_is_what_the_objectives_call_late_by_names_that_spans_have() -> None:
    found = [re.fullmatch(r'attributes\["([a-z_.]+)"\] > ([\d.]+)', each) for each in POLICIES["late"]["span"]]
    late = {each[1]: float(each[2]) for each in found if each}
    assert set(late.values()) == {TTFT_S}
    assert list(late) == ["gen_ai.response.time_to_first_chunk", "gen_ai.latency.time_to_first_token"]
    place = Trace("a" * 32, "b" * 16)
    tried = Attempt("r", 0.0, place.child())
    record = Record("r", Route.CHAT, "POST", 0.0, stream=True, first_byte=1.0, tries=(tried,), ended=2.0)
    spans = Spans(Resource({}), "vllm", lambda: 0.0, lambda: 0.0).of(record, place)
    assert any("gen_ai.response.time_to_first_chunk" in (each.attributes or {}) for each in spans)
    engines = (ROOT / "app" / "engines" / "transformers" / "tracing.py").read_text()
    assert '"gen_ai.latency.time_to_first_token"' in engines


def test_who_speaks_to_it_finds_it() -> None:
    http = FILE["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert http.rpartition(":")[2] == DEFAULT_ENDPOINT.rpartition(":")[2]
    for name in ("gateway", "engine", "vllm-0"):
        told = COMPOSE["services"][name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]
        assert told == f"http://otel-collector:{http.rpartition(':')[2]}"
        assert not [each for each in COMPOSE["services"][name]["environment"] if each.startswith("OTEL_TRACES_SAMPLER")]
    assert FILE["exporters"]["otlp_grpc/jaeger"]["endpoint"] == "jaeger:4317"
    assert set(SERVICE["networks"]) & set(COMPOSE["services"]["jaeger"]["networks"])
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    (job,) = [each for each in scraped if each["job_name"] == "otel-collector"]
    (reader,) = FILE["service"]["telemetry"]["metrics"]["readers"]
    port = reader["pull"]["exporter"]["prometheus"]["port"]
    assert job["static_configs"][0]["targets"] == [f"otel-collector:{port}"]
