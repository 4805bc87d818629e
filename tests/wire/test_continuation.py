"""Which streams can be gone on with, and what is asked for then."""

import json
from typing import Any

import msgspec
import pytest

from app.generation import Call, Route
from app.wire.continuation import _HARMLESS, _HINDERING, continuable, rest_of
from app.wire.parsing import parse
from app.wire.requests import REQUESTS, ChatRequest, CompletionRequest
from tests.wire.bodies import HELLO

CHAT: dict[str, Any] = {"messages": HELLO, "stream": True}
COMPLETION: dict[str, Any] = {"prompt": "Why", "stream": True}

TOOL = {"type": "function", "function": {"name": "f"}}

GOES_ON: list[dict[str, Any]] = [
    {},
    {"max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
    {"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "min_tokens": 0},
    {"stop": ["a", "b"], "stop_token_ids": [1], "logit_bias": {"5": 1}, "ignore_eos": False},
    {"seed": 5, "temperature": 0},
    {"stream_options": {"include_usage": True}},
    {"response_format": {"type": "text"}, "structured_outputs": None},
    {"user": "x", "metadata": {"a": "b"}},
]
CHAT_GOES_ON: list[dict[str, Any]] = [
    {"logprobs": False, "tools": [], "tool_choice": "none", "parallel_tool_calls": True},
    {"max_completion_tokens": 5, "add_generation_prompt": True, "continue_final_message": False},
    {"chat_template_kwargs": {"enable_thinking": False}},
]
ENDS: list[dict[str, Any]] = [
    {"n": 2},
    {"best_of": 2},
    {"presence_penalty": 0.1},
    {"frequency_penalty": 0.1},
    {"length_penalty": 2},
    {"min_tokens": 1},
    {"ignore_eos": True},
    {"seed": 0},
    {"seed": 0, "temperature": 0.1},
    {"stop": "a", "include_stop_str_in_output": True},
    {"bad_words": ["a"]},
    {"use_beam_search": True},
    {"prompt_logprobs": 0},
    {"return_token_ids": True},
    {"return_tokens_as_token_ids": True},
    {"truncate_prompt_tokens": 5},
    {"response_format": {"type": "json_object"}},
    {"structured_outputs": {"regex": "a"}},
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"stream_options": {"include_obfuscation": True}},
    {"logprobs": 0},
]
CHAT_ENDS: list[dict[str, Any]] = [
    {"logprobs": True},
    {"tools": [TOOL]},
    {"tool_choice": "auto"},
    {"reasoning_effort": "low"},
    {"include_reasoning": False},
    {"add_generation_prompt": False},
    {"continue_final_message": True},
    {"echo": True},
    {"modalities": ["audio"]},
    {"prediction": {"type": "content", "content": "x"}},
]
COMPLETION_ENDS: list[dict[str, Any]] = [
    {"echo": True},
    {"suffix": "x"},
    {"prompt": ["a", "b"]},
    {"prompt": [1, 2]},
    {"prompt": [[1, 2]]},
]


def can_go_on(route: Route, body: dict[str, Any]) -> bool:
    return continuable(parse(route, json.dumps(body).encode()))


@pytest.mark.parametrize("fields", GOES_ON + CHAT_GOES_ON, ids=str)
def test_a_chat_that_is_plain_text_goes_on(fields: dict[str, Any]) -> None:
    assert can_go_on(Route.CHAT, CHAT | fields)


@pytest.mark.parametrize("fields", [*GOES_ON, {"prompt": ["Why"]}, {"suffix": "", "echo": False}], ids=str)
def test_a_completion_of_one_text_goes_on(fields: dict[str, Any]) -> None:
    assert can_go_on(Route.COMPLETIONS, COMPLETION | fields)


@pytest.mark.parametrize("fields", [each for each in ENDS if each != {"logprobs": 0}] + CHAT_ENDS, ids=str)
def test_a_chat_that_is_more_than_plain_text_does_not(fields: dict[str, Any]) -> None:
    assert not can_go_on(Route.CHAT, CHAT | fields)


@pytest.mark.parametrize("fields", ENDS + COMPLETION_ENDS, ids=str)
def test_a_completion_that_is_more_than_plain_text_does_not(fields: dict[str, Any]) -> None:
    assert not can_go_on(Route.COMPLETIONS, COMPLETION | fields)


@pytest.mark.parametrize("route", [route for route in Route if route not in (Route.CHAT, Route.COMPLETIONS)])
def test_no_other_endpoints_answers_do(route: Route) -> None:
    bodies: dict[Route, dict[str, Any]] = {
        Route.EMBEDDINGS: {"input": "a"},
        Route.RESPONSES: {"input": "a", "stream": True},
        Route.MESSAGES: {"messages": HELLO, "max_tokens": 5, "stream": True},
        Route.TOKENIZE: {"prompt": "a"},
        Route.DETOKENIZE: {"tokens": [1]},
    }
    assert not can_go_on(route, bodies[route])


def test_a_field_that_is_new_hinders_until_somebody_has_thought_about_it() -> None:
    for kind in (ChatRequest, CompletionRequest):
        assert set(_HINDERING[kind]) < set(kind.__struct_fields__)
        assert "tools" not in kind.__struct_fields__ or "tools" in _HINDERING[kind]
    known = {name for kind in REQUESTS.values() for name in kind.__struct_fields__}
    assert set(_HARMLESS) <= known


def call(route: Route, body: dict[str, Any], max_tokens: int | None = None) -> Call:
    data = json.dumps(body).encode()
    return Call("r", route, "demo", data, 0, stream=True, max_tokens=max_tokens, continuable=True)


def test_a_chat_goes_on_with_its_last_message() -> None:
    asked = CHAT | {"max_tokens": 10, "metadata": {"a": "é"}, "temperature": 0.5}
    rest = rest_of(call(Route.CHAT, asked, 10), "Becau\n", 3)
    said = {"role": "assistant", "content": "Becau\n"}
    goes_on = {"add_generation_prompt": False, "continue_final_message": True}
    assert json.loads(rest.body) == asked | {"messages": [*HELLO, said], "max_tokens": 7, **goes_on}
    assert rest.max_tokens == 7
    parse(Route.CHAT, rest.body)


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({}, {}),
        ({"max_completion_tokens": 10}, {"max_completion_tokens": 7}),
        ({"max_completion_tokens": 10, "max_tokens": 20}, {"max_completion_tokens": 7, "max_tokens": 17}),
        ({"max_tokens": None}, {"max_tokens": None}),
    ],
)
def test_each_limit_that_was_set_is_what_is_left_of_it(limits: dict[str, Any], left: dict[str, Any]) -> None:
    body = json.loads(
        rest_of(call(Route.CHAT, CHAT | limits, 10 if limits.get("max_completion_tokens") else None), "a", 3).body
    )
    assert {name: body[name] for name in body if name.startswith("max_")} == left


@pytest.mark.parametrize("prompt", ["Why? ", ["Why? "]])
def test_a_completion_goes_on_behind_its_prompt(prompt: Any) -> None:
    rest = rest_of(call(Route.COMPLETIONS, COMPLETION | {"prompt": prompt, "echo": False}), "Becau", 3)
    assert json.loads(rest.body) == {"prompt": "Why? Becau", "max_tokens": 13, "stream": True, "echo": False}


def test_all_else_about_the_call_stays() -> None:
    whole = call(Route.CHAT, CHAT | {"max_tokens": 9}, 9)
    rest = rest_of(whole, "a", 1)
    assert msgspec.structs.replace(rest, body=whole.body, max_tokens=9) == whole
