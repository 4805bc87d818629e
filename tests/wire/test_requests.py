"""Bodies: what real clients send is accepted and keeps its meaning; everything else is refused by name."""

import json
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as openai_completions
from openai.types import embedding_create_params as openai_embeddings
from openai.types.chat import completion_create_params as openai_chat
from openai.types.responses import response_create_params as openai_responses

from app.errors import InvalidRequest
from app.generation import Route
from app.wire.parsing import parse
from app.wire.requests import REQUESTS, AnyRequest, ChatRequest
from tests.wire.bodies import ACCEPTED, BODIES, HELLO, WEATHER


def parsed(body: Any, route: Route = Route.CHAT) -> AnyRequest:
    return parse(route, body if isinstance(body, bytes) else json.dumps(body).encode())


def refused(body: Any, route: Route = Route.CHAT) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parsed(body, route)
    assert len(caught.value.message) <= 256
    assert len(caught.value.param or "") <= 128
    assert (caught.value.param or "").isprintable()
    return caught.value


def asking(**fields: Any) -> dict[str, Any]:
    return {"messages": HELLO, **fields}


def saying(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


# --- what is accepted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "name"), ACCEPTED)
def test_what_real_clients_send_is_accepted(route: Route, name: str) -> None:
    parsed(BODIES[route][name], route)


@pytest.mark.parametrize(("route", "name"), ACCEPTED)
def test_what_is_parsed_means_what_was_sent(route: Route, name: str) -> None:
    body = BODIES[route][name]
    request = parsed(body, route)
    for field in ("model", "stream", "n", "temperature", "user", "stop", "seed", "prompt", "input", "tokens"):
        if hasattr(request, field):
            assert getattr(request, field) == body.get(field)


def test_the_output_limit_is_the_newer_field_if_both_are_there() -> None:
    def limit(**fields: Any) -> int | None:
        request = parsed(asking(**fields))
        assert isinstance(request, ChatRequest)
        return request.output_limit()

    assert limit() is None
    assert limit(max_tokens=5) == 5
    assert limit(max_completion_tokens=6) == 6
    assert limit(max_tokens=5, max_completion_tokens=6) == 6


DECLINED = {
    Route.CHAT: {
        "function_call",  # since 2023 replaced by tools, which every engine here knows
        "functions",
        "moderation",  # OpenAI's own services
        "web_search_options",
    },
    Route.COMPLETIONS: set(),
    Route.EMBEDDINGS: set(),
    Route.RESPONSES: {
        "background",  # these need an engine's memory, and the next call may meet another replica
        "context_management",
        "conversation",
        "previous_response_id",
        "prompt",
        "access_programs",  # OpenAI's own services
        "image",
        "moderation",
    },
}
OPENAI: dict[Route, Any] = {
    Route.CHAT: openai_chat.CompletionCreateParamsBase,
    Route.COMPLETIONS: openai_completions.CompletionCreateParamsBase,
    Route.EMBEDDINGS: openai_embeddings.EmbeddingCreateParams,
    Route.RESPONSES: openai_responses.ResponseCreateParamsBase,
}


@pytest.mark.parametrize("route", OPENAI)
def test_every_parameter_of_the_openai_sdk_is_accepted_or_declined_with_a_reason(route: Route) -> None:
    known = set(REQUESTS[route].__struct_fields__)
    assert set(typing.get_type_hints(OPENAI[route])) - known <= DECLINED[route]


# --- what is refused ----------------------------------------------------------------------------------------------

DANGEROUS = """
    api_base base_url api_key chat_template prompt_embeds kv_transfer_params vllm_xargs cache_salt extra_body
    guided_decoding_backend request_id priority mm_processor_kwargs media_io_kwargs documents functions
    logits_processors mcp_servers previous_response_id background session_id lora_path
""".split()


@pytest.mark.parametrize("route", Route)
@pytest.mark.parametrize("field", [*DANGEROUS, "no_such_field"])
def test_a_field_that_an_engine_might_obey_is_refused_at_every_endpoint(route: Route, field: str) -> None:
    body = next(iter(BODIES[route].values())) | {field: "x"}
    error = refused(body, route)
    assert (error.code, error.param) == ("unsupported_parameter", field)


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS])
@pytest.mark.parametrize("kind", ["json", "regex", "choice", "grammar"])
def test_a_constraint_that_engines_no_longer_obey_is_refused_with_the_word_for_it(route: Route, kind: str) -> None:
    error = refused(next(iter(BODIES[route].values())) | {f"guided_{kind}": "x"}, route)
    assert (error.code, error.param) == ("unsupported_parameter", f"guided_{kind}")
    assert f"'structured_outputs': {{'{kind}': ...}}" in error.message


@pytest.mark.parametrize(("field", "newer"), [("functions", "'tools'"), ("function_call", "'tool_choice'")])
def test_who_calls_functions_in_the_old_way_is_told_the_new_one(field: str, newer: str) -> None:
    error = refused(asking(**{field: "auto"}))
    assert (error.code, error.param) == ("unsupported_parameter", field)
    assert newer in error.message


@pytest.mark.parametrize("route", Route)
def test_a_required_field_that_is_missing_is_named(route: Route) -> None:
    error = refused({}, route)
    assert error.code in ("missing_required_parameter", "invalid_value")
    assert error.param in REQUESTS[route].__struct_fields__


OUT_OF_RANGE: list[tuple[Route, str, Any]] = [
    *[(Route.CHAT, "min_tokens", value) for value in (-1, 2**70)],
    *[(Route.CHAT, "prompt_logprobs", value) for value in (-2, 21, 2**70)],
    *[(Route.CHAT, "truncate_prompt_tokens", value) for value in (-2, 2**70)],
    *[(Route.CHAT, "length_penalty", value) for value in (-11, 1e300)],
    *[(Route.CHAT, "repetition_penalty", value) for value in (0, 5e-324, 0.009, 10.1)],
    *[(Route.CHAT, "top_k", value) for value in (-2, 0.5, "5")],
    (Route.CHAT, "bad_words", ["x"] * 1_025),
    (Route.CHAT, "modalities", ["x"] * 17),
    (Route.CHAT, "tool_choice", "whatever"),
    (Route.CHAT, "tool_choice", 1),
    (Route.CHAT, "tools", [{"type": "function", "function": {"name": "f", "parameters": []}}]),
    (Route.CHAT, "tools", [{"type": "function", "function": {"name": "f\u0000", "parameters": {}}}]),
    (Route.CHAT, "tools", [WEATHER] * 1_025),
    (Route.COMPLETIONS, "logprobs", -1),
    (Route.COMPLETIONS, "prompt", []),
    (Route.COMPLETIONS, "prompt", [[]]),
    (Route.COMPLETIONS, "prompt", [1, "a"]),
    (Route.COMPLETIONS, "prompt", [-1]),
    (Route.COMPLETIONS, "prompt", [True]),
    (Route.COMPLETIONS, "prompt", ["a"] * 2_049),
    (Route.EMBEDDINGS, "input", ["a"] * 2_049),
    (Route.EMBEDDINGS, "input", {"text": "a"}),
    (Route.EMBEDDINGS, "encoding_format", "bytes"),
    (Route.EMBEDDINGS, "dimensions", 0),
    (Route.RESPONSES, "tool_choice", "whatever"),
    (Route.RESPONSES, "max_output_tokens", 0),
    (Route.RESPONSES, "input", 5),
    (Route.MESSAGES, "messages", []),
    (Route.MESSAGES, "messages", [{"role": "wizard", "content": "x"}]),
    (Route.MESSAGES, "messages", [{"role": "user", "content": 5}]),
    (Route.MESSAGES, "max_tokens", 0),
    (Route.MESSAGES, "stop_sequences", ["x"] * 17),
    (Route.TOKENIZE, "prompt", 5),
    (Route.DETOKENIZE, "tokens", []),
    (Route.DETOKENIZE, "tokens", ["a"]),
]


@pytest.mark.parametrize(("route", "field", "value"), OUT_OF_RANGE, ids=lambda value: str(value)[:24])
def test_a_value_out_of_range_is_refused_and_names_its_field(route: Route, field: str, value: Any) -> None:
    body = next(iter(BODIES[route].values())) | {field: value}
    error = refused(body, route)
    assert error.code in ("invalid_value", "invalid_type")
    assert (error.param or "").split(".")[0].split("[")[0] == field


def test_tokenize_takes_a_text_or_a_conversation_and_not_both() -> None:
    assert refused({"prompt": "a", "messages": HELLO}, Route.TOKENIZE).param == "prompt"
    assert refused({"model": "m"}, Route.TOKENIZE).param == "prompt"


def test_a_tools_result_says_which_call_it_answers() -> None:
    error = refused({"messages": [*HELLO, {"role": "tool", "content": "18"}]})
    assert (error.param, error.code) == ("messages[1].tool_call_id", "missing_required_parameter")


# --- nothing is fetched on behalf of a request --------------------------------------------------------------------

ELSEWHERE = ["http://169.254.169.254/", "https://x/y.png", "file:///etc/passwd", "//x", "s3://b/k", "/etc/passwd", ""]


def conversation(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [part]}]


@pytest.mark.parametrize("url", ELSEWHERE)
@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url"])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("route", [Route.CHAT, Route.TOKENIZE])
def test_media_by_address_are_refused_in_a_conversation(route: Route, kind: str, wrapped: bool, url: str) -> None:
    part = {"type": kind, kind: {"url": url} if wrapped else url}
    error = refused({"messages": conversation(part)}, route)
    assert (error.code, error.param) == ("image_url_not_allowed", "messages[0].content[0]")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "url": "http://x/"},
        {"type": "image", "image": "http://x/"},
        {"type": "video", "video": "http://x/"},
        {"type": "image", "path": "/etc/passwd"},
        {"type": "input_file", "file_url": "http://x/"},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "audio_embeds", "audio_embeds": "AAAA"},
        {"type": "prompt_embeds", "prompt_embeds": "AAAA"},
        {"type": "file", "file": {"file_data": "http://x/"}},
        {"type": "file", "file": {"file_id": "http://x/"}},
        {"type": "file", "file": {"file_url": "http://x/"}},
    ],
)
@pytest.mark.parametrize("route", [Route.CHAT, Route.TOKENIZE])
def test_what_an_engine_might_fetch_or_load_is_refused_in_every_spelling(route: Route, part: dict[str, Any]) -> None:
    error = refused({"messages": conversation(part)}, route)
    assert error.code in ("unsupported_parameter", "image_url_not_allowed")
    assert (error.param or "").startswith("messages[0].content[0]")


@pytest.mark.parametrize("url", ELSEWHERE)
@pytest.mark.parametrize("deep", [False, True])
def test_media_by_address_are_refused_in_responses(url: str, deep: bool) -> None:
    for part in (
        {"type": "input_image", "image_url": url},
        {"type": "input_image", "image_url": {"url": url}},
        {"type": "input_file", "file_url": url},
        {"type": "input_file", "file_data": url or "http://x"},
    ):
        item: dict[str, Any] = (
            {"type": "function_call_output", "call_id": "c", "output": [part]} if deep else conversation(part)[0]
        )
        error = refused({"input": [item]}, Route.RESPONSES)
        assert (error.code, error.param) == ("image_url_not_allowed", "input")


@pytest.mark.parametrize("url", ELSEWHERE)
def test_media_by_address_are_refused_in_messages(url: str) -> None:
    image = {"type": "image", "source": {"type": "url", "url": url}}
    document = {"type": "document", "source": {"type": "url", "url": url}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    foreign = {"type": "image_url", "image_url": {"url": url}}
    for part in (image, document, result, foreign):
        for body in ({"messages": conversation(part)}, {"messages": HELLO, "system": [part]}):
            error = refused({"max_tokens": 5, **body}, Route.MESSAGES)
            assert error.code == "image_url_not_allowed"


def test_a_tool_that_lives_elsewhere_is_refused() -> None:
    tool = {"type": "mcp", "server_label": "x", "server_url": "http://169.254.169.254/"}
    error = refused({"input": "x", "tools": [tool]}, Route.RESPONSES)
    assert (error.code, error.param) == ("unsupported_parameter", "tools[0].server_url")


# --- schemas ------------------------------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


BAD_SCHEMAS: dict[str, Any] = {
    "refers elsewhere": {"$ref": "http://x/y"},
    "refers elsewhere deep inside": {"properties": {"a": {"anyOf": [{"$ref": "https://x/y#/z"}]}}},
    "refers to a file": {"$ref": "file:///etc/passwd"},
    "refers to a neighbour": {"$ref": "other.json#/a"},
    "refers dynamically": {"$dynamicRef": "http://x/y"},
    "is huge": {"enum": ["y" * 70_000]},
    "is deep": nested(200),
    "asks for a billion items": {"type": "array", "minItems": 10**9},
    "asks for a billion letters": {"type": "string", "minLength": 10**9},
}
PLACES: dict[str, tuple[Route, Any]] = {
    "response_format": (
        Route.CHAT,
        lambda schema: asking(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
    ),
    "response_format, as structural tags": (
        Route.CHAT,
        lambda schema: asking(
            response_format={"type": "structural_tag", "structures": [{"schema": schema}], "triggers": []}
        ),
    ),
    "structured_outputs": (Route.CHAT, lambda schema: asking(structured_outputs={"json": schema})),
    "structured_outputs of completions": (
        Route.COMPLETIONS,
        lambda schema: {"prompt": "x", "structured_outputs": {"json": schema}},
    ),
    "tools": (
        Route.CHAT,
        lambda schema: asking(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}]),
    ),
    "structured_outputs of responses": (
        Route.RESPONSES,
        lambda schema: {"input": "x", "structured_outputs": {"json": schema}},
    ),
    "tools of responses": (
        Route.RESPONSES,
        lambda schema: {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": schema}]},
    ),
    "text": (
        Route.RESPONSES,
        lambda schema: {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
    ),
    "tools of messages": (
        Route.MESSAGES,
        lambda schema: {"messages": HELLO, "max_tokens": 5, "tools": [{"name": "f", "input_schema": schema}]},
    ),
}


@pytest.mark.parametrize("case", BAD_SCHEMAS)
@pytest.mark.parametrize("place", PLACES)
def test_a_schema_that_would_harm_an_engine_is_refused_wherever_it_stands(place: str, case: str) -> None:
    route, body = PLACES[place]
    error = refused(body(BAD_SCHEMAS[case]), route)
    assert error.code == "invalid_schema"
    assert (error.param or "").split("[")[0] in place


def test_a_reference_cannot_hide_behind_an_escape() -> None:
    body = b'{"messages":[{"role":"user","content":"x"}],"structured_outputs":{"\\u0024ref":"http:\\u002f/x"}}'
    assert refused(body).code == "invalid_schema"


# --- what is said -------------------------------------------------------------------------------------------------

LONG = "x" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        asking(**{LONG: 1}),
        asking(**{"\n\x1b[31m" * 50: 1}),
        asking(**{f"x` - at `$.{LONG}": 1}),
        asking(**{"a` - at `$.b\n\x9b": 1}),
        asking(model=LONG),
        asking(stop=[LONG]),
        asking(user={LONG: LONG}),
        asking(logit_bias={LONG: 1}),
        asking(logit_bias={LONG: LONG}),
        asking(metadata={LONG: []}),
        asking(response_format={"type": LONG}),
        asking(chat_template_kwargs={LONG: 1}),
        asking(tools=[{"type": LONG}]),
        asking(tools=[{"type": "function", "function": {"name": LONG}}]),
        asking(tool_choice=LONG),
        saying({"type": LONG}),
        saying({"type": "text", LONG: 1}),
        {"messages": [{"role": LONG, "content": "x"}]},
        {"messages": [{"role": "user", "content": "x", LONG: "x"}]},
    ],
)
def test_a_refusal_is_short_and_repeats_nothing_long_or_unprintable(body: dict[str, Any]) -> None:
    error = refused(body)
    assert "xxx" not in error.message


def test_a_refusal_says_what_was_expected() -> None:
    assert refused(asking(temperature=3)).message == "Expected 'float' <= 2.0."
    assert refused(asking(n="3")).message == "Expected 'int | null', got 'str'."
    assert refused(asking(stop=1)).message == "Expected 'str | list | null', got 'int'."
    assert refused([]).message == "Expected 'object', got 'list'."


# --- whatever comes -----------------------------------------------------------------------------------------------

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["user", "text", "function", "http://x", "data:,", "#/a"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["role", "content", "type", "url", "image_url", "$ref", "function"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


def outcome(route: Route, body: bytes) -> AnyRequest | InvalidRequest:
    """Anything else that is raised fails the test."""
    try:
        return parse(route, body)
    except InvalidRequest as error:
        return error


def survives(route: Route, body: bytes) -> None:
    end = outcome(route, body)
    if isinstance(end, InvalidRequest):
        assert len(end.message) <= 256
        assert len(end.param or "") <= 128
        assert (end.param or "").isprintable()
        assert end.code
    else:
        assert isinstance(end, REQUESTS[route])
        msgspec.json.decode(body)


@given(st.sampled_from(list(Route)), st.binary(max_size=300))
def test_random_bytes_are_refused_and_nothing_worse(route: Route, body: bytes) -> None:
    survives(route, body)


@given(st.sampled_from(list(Route)), JSON)
def test_random_json_is_refused_and_nothing_worse(route: Route, value: Any) -> None:
    survives(route, json.dumps(value).encode(errors="surrogatepass"))


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(st.sampled_from(ACCEPTED), st.data())
def test_a_good_body_with_anything_in_any_place_is_parsed_or_refused(
    which: tuple[Route, str], data: st.DataObject
) -> None:
    route, name = which
    body = BODIES[route][name]
    fields = REQUESTS[route].__struct_fields__
    changed = data.draw(st.dictionaries(st.sampled_from(fields) | st.text(max_size=8), JSON, min_size=1, max_size=3))
    survives(route, json.dumps(body | changed).encode(errors="surrogatepass"))


@settings(max_examples=300)
@given(st.sampled_from(ACCEPTED), st.data())
def test_a_good_body_with_bytes_changed_is_parsed_or_refused(which: tuple[Route, str], data: st.DataObject) -> None:
    route, name = which
    body = bytearray(json.dumps(BODIES[route][name]).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    survives(route, bytes(body))
