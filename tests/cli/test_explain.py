"""`gllm explain`: what it asks for, the list, and how it fails. Its sentences are tested where calls are made."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from app.telemetry.explanation import Explanation, Summary
from app.telemetry.record import Keyed, Reason
from app.telemetry.story import NotRetried
from app.tenant import Kind
from gllm.cli import main
from gllm.cli.sentences import CHOSEN_BY, KEYED, LIMITS, NOT_RETRIED
from gllm.cli.sentences import told as sentences
from tests.cli.test_operating import Gateway, Told, gateway, told

__all__ = ["gateway", "told"]

SERVED: dict[str, Any] = {
    "id": "req-1",
    "came": "2026-11-27T10:15:40Z",
    "state": "ended",
    "endpoint": "/v1/chat/completions",
    "model": "demo",
    "tenant": "team",
    "priority": "normal",
    "stream": True,
    "status": 200,
    "outcome": "ok",
    "code": "",
    "duration_ms": 1234.5,
    "queue_ms": 12.0,
    "first_byte_ms": 40.0,
    "replica": "127.0.0.1:8100",
    "attempts": 1,
    "prompt_tokens": 7,
    "completion_tokens": 4,
}
WAITS: dict[str, Any] = {
    **SERVED,
    "id": "req-2",
    "state": "waiting",
    "stream": False,
    "status": None,
    "outcome": None,
    "queue_ms": 0.0,
    "first_byte_ms": None,
    "replica": "",
    "attempts": 0,
    "prompt_tokens": None,
    "completion_tokens": None,
}
NOTHING = dict.fromkeys(("intake", "limits", "route", "engine", "between", "stream", "overhead"))
WHOLE: dict[str, Any] = {
    **SERVED,
    "gateway": "ab12",
    "method": "POST",
    "policy": "session",
    "trace_id": "f" * 32,
    "asked": None,
    "place": None,
    "places": None,
    "idempotency": None,
    "answered_by": "",
    "spent": {**NOTHING, "queue": 0.0},
    "tokens": None,
    "limits": [],
    "line": [],
    "tried": [],
    "not_retried": None,
    "taken_over": 0,
    "events": 0,
    "usage": None,
    "error": "",
    "message": "",
    "param": "",
    "retry_after_s": None,
    "should_retry": None,
}


def page(*requests: dict[str, Any]) -> dict[str, Any]:
    return {"gateway": "ab12", "kept": 1000, "requests": list(requests)}


def test_without_an_id_the_latest_are_a_table(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/requests?limit=20", page(WAITS, SERVED))
    assert main(["explain"]) == 0
    assert told()[0].splitlines() == [
        "CAME (UTC)  OUTCOME    TOOK  QUEUED  CALL         MODEL  TENANT  REPLICA         TOKENS  ID",
        "10:15:40    waiting  1.23 s       -  chat         demo   team    -                    -  req-2",
        "10:15:40    200 ok   1.23 s   12 ms  chat stream  demo   team    127.0.0.1:8100     7+4  req-1",
    ]


def test_what_is_missing_from_the_list_is_said(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/requests?limit=20", {**page(SERVED), "silent": ["http://127.0.0.1:9101"]})
    assert main(["explain"]) == 0
    assert told()[0].splitlines()[-1] == "http://127.0.0.1:9101 did not answer: its requests are missing."


def test_filters_go_to_the_gateway(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/requests?limit=3&outcome=ok&tenant=team&model=demo", page())
    assert main(["explain", "--outcome", "ok", "--tenant", "team", "--model", "demo", "--limit", "3"]) == 0
    assert told() == ("There are no such requests.\n", "")


def test_the_last_one_is_asked_for_by_its_id(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/requests?limit=1&outcome=ok", page(SERVED))
    gateway.will("GET /admin/requests/req-1", WHOLE)
    assert main(["explain", "--last", "--outcome", "ok"]) == 0
    assert told()[0].startswith("Request req-1: ok (200) after 1.23 s\n")
    gateway.will("GET /admin/requests?limit=1", page())
    assert main(["explain", "--last"]) == 1
    assert told() == ("There is no such request.\n", "")


def test_as_json_it_is_what_the_gateway_said(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/requests/req-1", WHOLE)
    assert main(["explain", "req-1", "--json"]) == 0
    assert json.loads(told()[0]) == WHOLE


def test_an_id_may_be_any_text(gateway: Gateway, told: Told) -> None:
    gateway.refuse("GET /admin/requests/..%2Fa%20b", 404, "This request is not known here.", "not_found")
    assert main(["explain", "../a b"]) == 1
    assert told() == ("", "gllm: This request is not known here.\n")


@pytest.mark.parametrize("more", [["--last"], ["--limit", "3"], ["--tenant", "team"]])
def test_an_id_and_a_choice_contradict_each_other(gateway: Gateway, told: Told, more: list[str]) -> None:
    assert main(["explain", "req-1", *more]) == 2
    assert told() == ("", "gllm: Give either an ID, or --last, or filters.\n")
    assert gateway.asked == []


STAY: dict[str, Any] = {
    **dict.fromkeys(("expected_ms", "needed_ms", "left_ms"), 100.0),
    **{"ahead": 0, "waiting": 0, "again": False, "tenants": 1, "promoted": False, "displaced_by": ""},
}
TRIED: dict[str, Any] = {
    **{"replica": "one", "took_ms": 1.0, "running": False, "reason": None, "beside": False, "outrun": False},
    **{"error": "", "free": 1, "of": 1, "candidates": []},
}


@pytest.mark.parametrize(
    ("waited_ms", "began_ms", "came"), [(5.34, 5.46, True), (5.34, 5.45, True), (5.34, 5.4, False)]
)
def test_times_that_were_rounded_do_not_change_the_order(waited_ms: float, began_ms: float, came: bool) -> None:
    line = [{**STAY, "came_ms": 0.12, "waited_ms": waited_ms}]  # in floats: 5.46 and a hair more
    whole = {**WHOLE, "line": line, "tried": [{**TRIED, "began_ms": began_ms}]}
    text = "\n".join(sentences(msgspec.convert(whole, Explanation)))
    assert ("its turn had not come" in text) is not came
    assert ("its turn after" in text) is came
    assert (text.index("of waiting") < text.index("attempt 1")) is came


def test_what_somebody_else_has_named_moves_no_cursor() -> None:
    nasty = "a\x1b[2J\nb"
    whole = {
        **WHOLE,
        **dict.fromkeys(("model", "tenant", "code", "message", "param", "answered_by", "method", "endpoint"), nasty),
        "tried": [
            {
                "replica": nasty,
                "began_ms": 0.0,
                "took_ms": 1.0,
                "running": False,
                "reason": None,
                "beside": False,
                "outrun": False,
                "error": nasty,
                "free": 1,
                "of": 1,
                "candidates": [
                    {"replica": nasty, "running": None, "slots": None, "tokens": None, "score": None, "against": nasty}
                ],
            }
        ],
    }
    lines = list(sentences(msgspec.convert(whole, Explanation)))
    assert [line for line in lines if not line.isprintable()] == []


def test_every_word_of_a_gateway_has_its_sentence() -> None:
    assert set(CHOSEN_BY) == set(Reason)
    assert set(KEYED) == set(Keyed)
    assert set(NOT_RETRIED) == set(NotRetried)
    assert set(LIMITS) == set(Kind)


def test_a_day_is_shown_as_it_is_in_greenwich() -> None:
    summary = msgspec.convert(SERVED, Summary)
    assert summary.came == datetime(2026, 11, 27, 10, 15, 40, tzinfo=UTC)
