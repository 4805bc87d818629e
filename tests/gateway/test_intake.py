"""From bytes to a call: what is asked, by when, and what the engine gets to read. The client's bytes stay its own."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.fleet import Fleet
from app.cluster.replica import Replica
from app.engines.scripted import Scripted
from app.errors import InvalidRequest, UnknownModel, WrongMediaType
from app.gateway.intake import Defaults, Intake, check_media_type
from app.gateway.routing import round_robin
from app.generation import Call, Route
from tests.support.recorder import Recorder
from tests.wire.bodies import ACCEPTED, BODIES, HELLO
from tests.wire.test_edits import written

NOW = 1_000.0


def intake(
    *models: str, timeout_s: float = 600, max_choices: int = 16, counts_along: bool = False, **defaults: Any
) -> Intake:
    fleet = Fleet(round_robin(), Recorder())
    replica = Replica("a", Scripted())
    fleet.add(replica)
    fleet.answered(replica, dict.fromkeys(models or ("demo",), 1))
    return Intake(fleet, Defaults(**defaults), max_choices, timeout_s, counts_along)


def call(
    body: bytes | dict[str, Any], headers: dict[bytes, bytes] | None = None, route: Route = Route.CHAT, **how: Any
) -> Call:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return intake(**how).call(route, "req-1", data, headers or {}, NOW)


def asking(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": HELLO, **fields}


# --- the body -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "name"), ACCEPTED)
def test_a_body_that_needs_no_change_is_the_clients_own_bytes(route: Route, name: str) -> None:
    options = {"include_usage": True}
    sent = BODIES[route][name] | {"model": "demo"}
    if sent.get("stream") and route in (Route.CHAT, Route.COMPLETIONS):
        sent["stream_options"] = options
    body = json.dumps(sent, indent=1).encode()
    assert call(body, route=route).body is body


@pytest.mark.parametrize(("route", "name"), ACCEPTED)
def test_every_body_reaches_the_engine_with_all_it_said(route: Route, name: str) -> None:
    sent = BODIES[route][name] | {"model": "demo"}
    got = json.loads(call(sent, route=route).body)
    added = {key: value for key, value in got.items() if key not in sent}
    assert {key: got[key] for key in sent if key != "stream_options"} == {
        key: sent[key] for key in sent if key != "stream_options"
    }
    assert added in ({}, {"stream_options": {"include_usage": True}})


@given(st.data())
def test_however_a_body_is_written_what_is_added_is_added_and_nothing_else_changes(data: st.DataObject) -> None:
    sent: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {"messages": st.just(HELLO)},
            optional={
                "model": st.sampled_from(["demo", None]),
                "stream": st.sampled_from([True, False, None]),
                "max_tokens": st.sampled_from([5, None]),
                "max_completion_tokens": st.sampled_from([6, None]),
                "temperature": st.sampled_from([0, 1.5, None]),
                "user": st.sampled_from(["}", "é", None]),
            },
        )
    )
    if sent.get("stream"):
        options = st.sampled_from([None, {"include_usage": True}, {"include_usage": False}, {"include_usage": None}])
        sent["stream_options"] = data.draw(options)
    body = data.draw(written(sent))
    made = call(body, max_tokens=64, temperature=0.5)
    pairs = json.loads(made.body, object_pairs_hook=lambda pairs: pairs)
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names), "no field stands twice: some engines refuse that, others take the first"
    expected: dict[str, Any] = {name: value for name, value in sent.items() if value is not None or name == "user"}
    if sent.get("max_tokens") is None and sent.get("max_completion_tokens") is None:
        expected["max_tokens"] = 64
    if sent.get("temperature") is None:
        expected["temperature"] = 0.5
    expected["model"] = "demo"
    if sent.get("stream"):
        expected["stream_options"] = {"include_usage": True}
    got = {name: value for name, value in json.loads(made.body).items() if value is not None or name == "user"}
    assert got == expected


def test_bytes_are_added_at_the_end_and_the_rest_is_not_touched() -> None:
    body = b'{ "messages" : [ {"role":"user", "content":"\\u0048i \xc3\xa9}"} ], "temperature" : 1.50 }\n'
    assert call(body).body == body.rstrip()[:-1] + b',"model":"demo"}'


def test_a_field_that_is_null_is_set_where_it_stands() -> None:
    body = b'{"model":null,"messages":[{"role":"user","content":"x"}],"stream":true,"stream_options":null}'
    got = call(body).body
    assert json.loads(got)["model"] == "demo"
    assert json.loads(got)["stream_options"] == {"include_usage": True}
    assert got.count(b'"model"') == got.count(b'"stream_options"') == 1


@pytest.mark.parametrize(("prompt", "choices"), [("a", 2), (["a", "b", "c"], 6), ([1, 2, 3], 2), ([[1, 2], [3]], 4)])
def test_each_prompt_of_a_completion_is_answered(prompt: Any, choices: int) -> None:
    assert call({"model": "demo", "prompt": prompt, "n": 2}, route=Route.COMPLETIONS).choices == choices


def test_engines_that_can_are_asked_to_count_along_for_us_alone() -> None:
    along = {"include_usage": True, "continuous_usage_stats": True}
    for options, shows, counts in ((None, False, True), ({"include_usage": True}, True, True), (along, True, False)):
        made = call(asking(stream=True, **({"stream_options": options} if options else {})), counts_along=True)
        assert json.loads(made.body)["stream_options"] == along
        assert (made.shows_usage, made.counts_along) == (shows, counts)
    assert b"stream_options" not in call(asking(), counts_along=True).body


def test_other_stream_options_are_kept() -> None:
    """A client that declines the final count may want other things; they are the engine's to give."""
    options = {"include_usage": False, "include_obfuscation": False}
    got = json.loads(call(asking(stream=True, stream_options=options)).body)
    assert got["stream_options"] == {"include_usage": True, "include_obfuscation": False}


def test_continuous_counts_are_shown_only_with_the_final_one() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    kept = call(asking(stream=True, stream_options=options))
    assert json.loads(kept.body)["stream_options"] == options
    assert kept.shows_usage


@pytest.mark.parametrize("route", [Route.RESPONSES, Route.MESSAGES])
def test_the_dialects_that_always_count_are_not_asked_to(route: Route) -> None:
    body = json.dumps({**next(iter(BODIES[route].values())), "model": "demo", "stream": True}).encode()
    made = call(body, route=route)
    assert made.body is body
    assert made.stream


def test_defaults_are_for_who_says_nothing() -> None:
    silent = json.loads(call(asking(), max_tokens=64, temperature=0.5).body)
    assert (silent["max_tokens"], silent["temperature"]) == (64, 0.5)
    for own in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        got = json.loads(call(asking(**own, temperature=0), max_tokens=64, temperature=0.5).body)
        assert {name: got[name] for name in got if name.startswith("max")} == own
        assert got["temperature"] == 0
    assert "max_tokens" not in json.loads(
        call({"model": "demo", "input": "x"}, route=Route.EMBEDDINGS, max_tokens=64).body
    )


# --- what is known about the call ---------------------------------------------------------------------------------


def test_a_call_says_what_was_asked() -> None:
    made = call(asking(stream=True, n=3, max_completion_tokens=9, stream_options={"include_usage": True}))
    assert (made.id, made.route, made.model) == ("req-1", Route.CHAT, "demo")
    assert (made.stream, made.choices, made.max_tokens, made.shows_usage) == (True, 3, 9, True)
    plain = call(asking())
    assert (plain.stream, plain.choices, plain.max_tokens, plain.shows_usage) == (False, 1, None, False)


def test_the_output_limit_of_each_dialect_is_known() -> None:
    assert call({"input": "x", "max_output_tokens": 7}, route=Route.RESPONSES).max_tokens == 7
    assert call({"messages": HELLO, "max_tokens": 8}, route=Route.MESSAGES).max_tokens == 8
    assert call({"prompt": "x", "max_tokens": 9}, route=Route.COMPLETIONS).max_tokens == 9


def test_the_operators_limit_is_the_calls_limit_where_it_was_filled_in() -> None:
    assert call(asking(), max_tokens=64).max_tokens == 64


@pytest.mark.parametrize("name", ["n", "best_of"])
def test_choices_are_limited_by_the_operator(name: str) -> None:
    assert call({"prompt": "x", name: 4}, route=Route.COMPLETIONS, max_choices=4)
    with pytest.raises(InvalidRequest) as caught:
        call({"prompt": "x", name: 5}, route=Route.COMPLETIONS, max_choices=4)
    assert (caught.value.param, caught.value.code) == (name, "invalid_value")


def test_the_model_is_resolved_for_every_endpoint() -> None:
    for route in Route:
        body = next(iter(BODIES[route].values())) | {"model": "nope"}
        with pytest.raises(UnknownModel):
            call(body, route=route)
        body.pop("model")
        assert json.loads(call(body, route=route).body)["model"] == "demo"


# --- headers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "given_s"), [(b"1", 0.001), (b"1500", 1.5), (b"600000", 600), (b"999999999", 600)])
def test_a_deadline_is_what_the_client_asks_and_never_more_than_the_operator_allows(
    asked: bytes, given_s: float
) -> None:
    assert call(asking(), {b"x-request-timeout-ms": asked}).expires_at == NOW + given_s


def test_without_a_deadline_the_operators_holds() -> None:
    assert call(asking(), timeout_s=30).expires_at == NOW + 30


@pytest.mark.parametrize("asked", [b"", b" ", b"0", b"00", b"-1", b"+1", b"1.5", b"1e3", b"1 ", b"\xb2", b"9" * 10])
def test_a_deadline_that_is_no_number_is_refused(asked: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(asking(), {b"x-request-timeout-ms": asked})
    assert (caught.value.param, caught.value.code) == ("X-Request-Timeout-Ms", "invalid_header")


TRACE = b"00-" + b"a" * 32 + b"-" + b"b" * 16


@pytest.mark.parametrize("given", [TRACE + b"-01", TRACE + b"-00", TRACE + b"-ff"])
def test_a_trace_goes_on(given: bytes) -> None:
    assert call(asking(), {b"traceparent": given}).traceparent == given.decode()


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"00",
        TRACE,
        TRACE + b"-01-more",
        TRACE + b"-01\n",
        TRACE.upper() + b"-01",
        b"ff" + TRACE[2:] + b"-01",
        b"01" + TRACE[2:] + b"-01",
        TRACE.replace(b"a", b"0") + b"-01",
        TRACE.replace(b"b", b"0") + b"-01",
        TRACE.replace(b"a", b"g") + b"-01",
    ],
)
def test_what_is_no_trace_starts_a_new_one(given: bytes) -> None:
    assert call(asking(), {b"traceparent": given}).traceparent is None


@pytest.mark.parametrize(
    "kind",
    [
        b"application/json",
        b"application/json;charset=utf-8",
        b"application/json; charset=UTF-8",
        b'application/json; charset="utf-8"',
        b"APPLICATION/JSON",
        b" application/json ",
    ],
)
def test_json_in_utf8_is_taken(kind: bytes) -> None:
    check_media_type({b"content-type": kind})
    check_media_type({b"content-type": kind, b"content-encoding": b"identity"})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"content-type": b""},
        {b"content-type": b"text/plain"},
        {b"content-type": b"text/json"},
        {b"content-type": b"application/json; charset=latin-1"},
        {b"content-type": b"application/json; charset=utf-8; boundary=x"},
        {b"content-type": b"application/json, text/plain"},
        {b"content-type": b"multipart/form-data; boundary=x"},
        {b"content-type": b"application/x-www-form-urlencoded"},
        {b"content-type": b"application/json", b"content-encoding": b"gzip"},
        {b"content-type": b"application/json", b"content-encoding": b""},
    ],
)
def test_everything_else_is_not(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(WrongMediaType):
        check_media_type(headers)
