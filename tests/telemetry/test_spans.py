"""What the spans of a request say, by its record."""

from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from app.errors import Outcome
from app.generation import Route, Usage
from app.telemetry.record import Attempt, Reason, Record
from app.telemetry.tracing.spans import OPERATIONS, Spans, count_of
from app.trace import Trace

PLACE = Trace("a" * 32, "b" * 16)
CALENDAR = 1_000_000.0
"""What the calendar says when the clock says 0."""


def record(**fields: Any) -> Record:
    usual = {"id": "r", "endpoint": Route.CHAT, "method": "POST", "began": 100.0, "ended": 110.0, "model": "demo"}
    return Record(**{**usual, "status": 200, "tenant": "t", "trace": PLACE, **fields})


def attempt(replica: str, began: float, ended: float, **fields: Any) -> Attempt:
    return Attempt(replica, began, PLACE.child(), ended, **fields)


def spans(told: Record) -> list[ReadableSpan]:
    made = Spans(Resource({}), "vllm", lambda: 500.0, lambda: CALENDAR + 500.0).of(told, PLACE)
    assert len(made) == count_of(told)
    return made


def when(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time / 1e9 - CALENDAR, span.end_time / 1e9 - CALENDAR


def says(span: ReadableSpan, **wanted: object) -> bool:
    given = span.attributes or {}
    return {name: given.get(name.replace("__", ".")) for name in wanted} == wanted


def test_a_stream_that_waited_is_told_in_five_spans() -> None:
    tried = attempt("a", 103.5, 109.0, sought=101.0, reason=Reason.LOAD, among=2, address=("127.0.0.1", 8100))
    asked = {"stream": True, "choices": 2, "max_tokens": 9, "temperature": 0.5}
    usage = Usage(7, 5, 3)
    server, _, route, attempted, stream = made = spans(
        record(waits=((101.0, 103.0),), tries=(tried,), first_byte=104.0, usage=usage, events=6, **asked)
    )
    assert [each.name for each in made] == ["POST /v1/chat/completions", "queue", "route", "chat demo", "stream"]
    assert [when(each) for each in made] == [(100, 110), (101, 103), (103, 103.5), (103.5, 109), (104, 110)]
    (first_byte,) = server.events
    assert (first_byte.name, first_byte.timestamp) == ("first_byte", int((CALENDAR + 104) * 1e9))
    assert says(server, http__route=Route.CHAT, http__response__status_code=200, gllm__outcome="ok", gllm__tenant="t")
    assert says(route, gllm__replica="a", gllm__routed_by="load", gllm__candidates=2)
    assert says(attempted, gllm__replica="a", gllm__attempt=1, gen_ai__provider__name="vllm")
    assert says(attempted, server__address="127.0.0.1", server__port=8100, gen_ai__request__choice__count=2)
    assert says(attempted, gen_ai__request__max_tokens=9, gen_ai__request__temperature=0.5)
    assert says(attempted, gen_ai__operation__name="chat", gen_ai__request__model="demo", gen_ai__request__stream=True)
    assert says(attempted, gen_ai__usage__input_tokens=7, gen_ai__usage__output_tokens=5)
    assert says(attempted, gen_ai__usage__cache_read__input_tokens=3, gen_ai__response__time_to_first_chunk=0.5)
    assert says(stream, gllm__events=6)


def test_they_hang_together() -> None:
    tried = attempt("a", 103.0, 109.0)
    told = record(stream=True, waits=((101.0, 103.0),), tries=(tried,), first_byte=104.0)
    server, queue, route, attempted, stream = made = spans(told)
    for each in made:
        assert each.context is not None
        assert each.context.trace_id == 0xAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
    assert server.parent is None
    assert {each.parent.span_id for each in (queue, route, attempted) if each.parent} == {0xBBBBBBBBBBBBBBBB}
    assert tried.trace is not None
    assert stream.parent is not None
    assert f"{stream.parent.span_id:016x}" == tried.trace.span_id


def test_each_attempt_is_a_span_and_only_the_last_has_the_result() -> None:
    tries = (attempt("a", 101, 102, error="EngineFailed"), attempt("b", 103, 109, sought=102.75))
    _, _, failed, again, well = spans(record(tries=tries, usage=Usage(1, 2)))
    assert (failed.status.is_ok, well.status.is_ok) == (False, True)
    assert when(again) == (102.75, 103)
    assert says(failed, gllm__replica="a", gllm__attempt=1, error__type="EngineFailed")
    assert says(failed, gen_ai__usage__output_tokens=None)
    assert says(well, gllm__replica="b", gllm__attempt=2, error__type=None, gen_ai__usage__output_tokens=2)


def test_of_two_that_raced_the_slower_one_is_told_and_did_not_fail() -> None:
    tries = (attempt("a", 101, 103, outrun=True), attempt("b", 102, 109))
    _, _, slower, _, faster, stream = spans(record(tries=tries, stream=True, first_byte=103.0))
    assert says(slower, gllm__outrun=True)
    assert slower.status.is_ok
    assert stream.parent is not None
    assert faster.context is not None
    assert stream.parent.span_id == faster.context.span_id


def test_who_goes_on_with_a_stream_has_no_first_chunk_of_its_own() -> None:
    tries = (attempt("a", 101, 103, error="EngineBroken"), attempt("b", 103.5, 109))
    told = record(tries=tries, stream=True, first_byte=102.0, taken_over=1, usage=Usage(7, 5))
    _, _, _, _, later, stream = spans(told)
    assert says(later, gllm__replica="b", gen_ai__response__time_to_first_chunk=None, gen_ai__usage__output_tokens=5)
    assert when(stream) == (102, 110)


def test_what_is_usual_and_what_is_not_known_is_not_told() -> None:
    _, route, tried = spans(record(tries=(attempt("a", 101, 102),)))
    assert when(route) == (101, 101)
    assert says(route, gllm__routed_by=None)
    assert says(tried, server__address=None, gen_ai__request__choice__count=None, gen_ai__request__stream=None)
    assert says(tried, gen_ai__request__max_tokens=None, gen_ai__request__temperature=None)


def test_an_attempt_that_outlives_its_request_ends_with_it() -> None:
    _, _, tried = spans(record(tries=(attempt("a", 101, 0.0),), status=499, outcome=Outcome.CLIENT_GONE))
    assert when(tried) == (101, 110)


def test_tokens_that_were_guessed_are_not_told() -> None:
    _, _, tried = spans(record(tries=(attempt("a", 101, 102),), usage=Usage(1, 2), guessed=True))
    assert says(tried, gen_ai__usage__input_tokens=None)


@pytest.mark.parametrize(
    ("status", "outcome", "failed"),
    [
        (200, Outcome.OK, False),
        (404, Outcome.CLIENT_ERROR, False),
        (429, Outcome.RATE_LIMITED, False),
        (499, Outcome.CLIENT_GONE, False),
        (503, Outcome.QUEUE_FULL, True),
        (502, Outcome.UPSTREAM_FAILED, True),
        (200, Outcome.INTERRUPTED, True),
        (200, Outcome.DEADLINE, True),
    ],
)
def test_the_servers_span_fails_where_we_or_an_engine_did(status: int, outcome: Outcome, failed: bool) -> None:
    (server,) = spans(record(status=status, outcome=outcome, error="Some"))
    assert says(server, error__type="Some", gllm__outcome=outcome.value)
    assert server.status.is_ok is not failed


def test_an_answer_made_for_another_request_says_so() -> None:
    server, stream = spans(record(replayed=True, stream=True, first_byte=101.0))
    assert says(server, gllm__replayed=True)
    assert stream.parent is not None
    assert stream.parent.span_id == 0xBBBBBBBBBBBBBBBB


def test_every_endpoint_that_engines_answer_has_an_operation() -> None:
    assert set(OPERATIONS) == set(Route)


def test_an_engines_own_words_are_not_told() -> None:
    tried = attempt("a", 101, 102, error="EngineFailed")
    told = record(error="EngineFailed", detail="a prompt, an address", tries=(tried,))
    assert not [each for each in spans(told) if "prompt" in each.to_json()]
