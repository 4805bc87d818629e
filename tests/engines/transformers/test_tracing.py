"""What the engine's span says, by what is known of a request."""

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from app.engines.transformers.record import Record, Work
from app.engines.transformers.tracing import TRACED, Spans
from app.generation import Route
from app.trace import Trace
from tests.engines.transformers.test_start import Attempt

PLACE = Trace("a" * 32, "b" * 16, 1, "c" * 16)
CALENDAR = 1_000_000.0


def work(**fields: Any) -> Work:
    usual = {"prompt_tokens": 7, "produced": 5, "cached_tokens": 0, "choices": 1, "max_tokens": 9, "temperature": 0.0}
    moments = {"arrived": 101.0, "started": 102.0, "first_token": 104.0, "last_token": 107.0}
    return Work(**{**usual, **moments, "top_p": 1.0, "stream": False, "finishes": ("stop",), **fields})


def told(**fields: Any) -> ReadableSpan:
    usual = {"trace": PLACE, "route": Route.CHAT, "began": 100.0, "ended": 108.0, "id": "r", "answer_id": "chatcmpl-r"}
    more = {"model": "alias", "status": 200, "error": "", "interrupted": False, "prompt_tokens": 0, "work": work()}
    record = Record(**{**usual, **more, **fields})
    (span,) = Spans(Resource({}), "demo", lambda: 500.0, lambda: CALENDAR + 500.0).of(record)
    return span


def said(**fields: Any) -> dict[str, Any]:
    return dict(told(**fields).attributes or {})


def test_it_stands_on_the_calendar_below_its_caller() -> None:
    span = told()
    assert (span.name, span.kind.name) == ("llm_request", "SERVER")
    assert (span.start_time, span.end_time) == (int((CALENDAR + 100) * 1e9), int((CALENDAR + 108) * 1e9))
    (event,) = span.events
    assert (event.name, event.timestamp) == ("first_token", int((CALENDAR + 104) * 1e9))
    assert span.parent is not None
    assert (span.parent.span_id, span.parent.is_remote) == (0xCCCCCCCCCCCCCCCC, True)


def test_times_are_in_seconds_under_vllms_names() -> None:
    prefix = "gen_ai.latency."
    assert {name.removeprefix(prefix): value for name, value in said().items() if name.startswith(prefix)} == {
        "e2e": 7.0,
        "time_in_queue": 1.0,
        "time_to_first_token": 3.0,
        "time_in_model_prefill": 2.0,
        "time_in_model_decode": 3.0,
        "time_in_model_inference": 5.0,
    }


def test_what_was_asked_and_what_is_served_are_told_apart() -> None:
    names = said()
    assert (names["gen_ai.request.model"], names["gen_ai.response.model"]) == ("alias", "demo")


def test_who_gave_up_in_the_line_has_waited_and_nothing_else() -> None:
    gone = said(work=work(started=None, first_token=None, last_token=None, produced=0, finishes=("abort",)))
    assert gone["gen_ai.latency.time_in_queue"] == gone["gen_ai.latency.e2e"] == 7.0
    assert gone["gen_ai.response.finish_reasons"] == ("abort",)
    assert "gen_ai.latency.time_to_first_token" not in gone
    assert told(work=work(first_token=None)).events == ()


@pytest.mark.parametrize(
    ("status", "error", "interrupted", "failed"),
    [
        (200, "", False, False),
        (400, "ContextTooLong", False, False),
        (503, "QueueFull", False, True),
        (500, "Unforeseen", False, True),
        (200, "Unforeseen", True, True),
        (200, "ClientGone", False, False),
    ],
)
def test_it_fails_where_the_engine_did(status: int, error: str, interrupted: bool, failed: bool) -> None:
    span = told(status=status, error=error, interrupted=interrupted)
    assert span.status.is_ok is not failed
    assert (span.attributes or {}).get("error.type", "") == error


def test_what_was_refused_before_it_was_an_order_has_neither_tokens_nor_times() -> None:
    refused = said(work=None, status=400, error="InvalidRequest", model="", answer_id="")
    assert set(refused) == {
        "http.route",
        "http.response.status_code",
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.response.model",
        "gllm.request_id",
        "error.type",
    }


def test_only_what_the_model_works_for_is_told() -> None:
    assert set(TRACED.values()) == {Route.CHAT, Route.COMPLETIONS, Route.EMBEDDINGS}


def test_settings_that_would_lose_all_traces_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318")
    code, said, complained = Attempt("--model", ".", "--port", "0").end()
    assert code == 1
    assert "engine: failed OTEL_EXPORTER_OTLP_ENDPOINT must be a URL like http://127.0.0.1:4318, " in said
    assert "Or set ENABLE_TRACING=false." in complained
