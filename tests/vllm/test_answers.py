"""What vLLM offers reaches the client as vLLM says it, whole and streamed."""

import json
import re
from typing import Any

import pytest
from packaging.version import Version

from app.generation import Route
from app.wire.requests import REQUESTS
from tests.support.processes import GatewayProcess
from tests.support.vllm import ON_VLLM, VllmFleet

pytestmark = [*ON_VLLM]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUESTION = [{"role": "user", "content": "What is continuous batching?"}]
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])

ANSWER = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def asked(gateway: GatewayProcess, path: str, **fields: Any) -> dict[str, Any]:
    answer = gateway.http.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def streamed(gateway: GatewayProcess, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The events' data, without the end, which is there."""
    with gateway.http.stream("POST", path, json=fields | {"stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
        assert answer.status_code == 200, lines
    if path in (CHAT, COMPLETIONS):
        assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def said(gateway: GatewayProcess, *, stream: bool, **fields: Any) -> str:
    """The text of an answer in chat."""
    fields = {"messages": QUESTION, "temperature": 0} | fields
    if not stream:
        text: str = asked(gateway, CHAT, **fields)["choices"][0]["message"]["content"]
        return text
    chunks = streamed(gateway, CHAT, **fields)
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


# --- constraints ------------------------------------------------------------------------------------------------------


@STREAM
def test_an_answer_keeps_to_a_json_schema(gateway: GatewayProcess, stream: bool) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
    text = said(gateway, stream=stream, response_format=wanted, max_tokens=200)
    assert json.loads(text)["answer"] in ("yes", "no")


@STREAM
@pytest.mark.parametrize(
    ("constraint", "form"),
    [
        ({"choice": ["red", "green"]}, "red|green"),
        ({"regex": "[0-9]{3}"}, "[0-9]{3}"),
        ({"json": ANSWER}, r'\{\s*"answer"\s*:\s*"(yes|no)"\s*\}'),
        ({"grammar": 'root ::= "on" | "off"'}, "on|off"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_answer_keeps_to_what_vllm_calls_structured_outputs(
    gateway: GatewayProcess, stream: bool, constraint: dict[str, Any], form: str
) -> None:
    text = said(gateway, stream=stream, structured_outputs=constraint, max_tokens=200)
    assert re.fullmatch(form, text), text


@STREAM
def test_completions_keep_to_constraints_too(gateway: GatewayProcess, stream: bool) -> None:
    fields: dict[str, Any] = {"prompt": "The light is", "structured_outputs": {"choice": ["red", "green"]}}
    if stream:
        text = "".join(chunk["choices"][0]["text"] for chunk in streamed(gateway, COMPLETIONS, **fields))
    else:
        text = asked(gateway, COMPLETIONS, **fields)["choices"][0]["text"]
    assert text in ("red", "green")


def test_a_schema_that_vllm_cannot_use_is_the_clients_error(vllm: VllmFleet, gateway: GatewayProcess) -> None:
    if vllm.version.release[:2] == (0, 27):
        pytest.skip(f"vLLM {vllm.version} says 500 to it, as to a failure of its own, and not why")
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "nonsense"}}}
    answer = gateway.http.post(CHAT, json={"messages": QUESTION, "response_format": wanted})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "engine_refused")


# --- tools ------------------------------------------------------------------------------------------------------------

NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("choice", [NAMED, "required"], ids=["named", "required"])
def test_a_tool_is_called_as_its_schema_says(gateway: GatewayProcess, choice: Any) -> None:
    fields = {"messages": QUESTION, "temperature": 0, "max_tokens": 200, "tools": [WEATHER], "tool_choice": choice}
    message = asked(gateway, CHAT, **fields)["choices"][0]["message"]
    (call, *_) = message["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")


@pytest.mark.parametrize("choice", [NAMED, "required"], ids=["named", "required"])
def test_a_streamed_tool_call_comes_in_pieces_that_join(gateway: GatewayProcess, choice: Any) -> None:
    fields = {"messages": QUESTION, "temperature": 0, "max_tokens": 200, "tools": [WEATHER], "tool_choice": choice}
    chunks = streamed(gateway, CHAT, **fields)
    pieces = [
        piece
        for chunk in chunks
        for piece in chunk["choices"][0]["delta"].get("tool_calls") or ()
        if piece["index"] == 0
    ]
    assert pieces[0]["function"]["name"] == "weather"
    arguments = "".join(piece["function"].get("arguments") or "" for piece in pieces)
    assert json.loads(arguments)["city"] in ("Rome", "Oslo")


def test_the_result_of_a_tool_may_follow(gateway: GatewayProcess) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    past = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]
    past += [{"role": "tool", "tool_call_id": "call_1", "content": "Sunny"}]
    done = asked(gateway, CHAT, messages=past, tools=[WEATHER], max_tokens=8)
    assert done["choices"][0]["message"]["role"] == "assistant"


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_logprobs_of_a_stream_and_of_the_whole_are_the_same_tokens(gateway: GatewayProcess) -> None:
    fields = {"messages": QUESTION, "temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    whole = asked(gateway, CHAT, **fields)["choices"][0]["logprobs"]["content"]
    chunks = streamed(gateway, CHAT, **fields)
    pieces = [one for chunk in chunks for one in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [each["token"] for each in pieces] == [each["token"] for each in whole]
    assert len(whole) == 6
    assert all(len(each["top_logprobs"]) == 2 for each in pieces)


def test_the_logprobs_of_a_prompt_come_with_its_echo(gateway: GatewayProcess) -> None:
    done = asked(gateway, COMPLETIONS, prompt="Docker is", echo=True, logprobs=1, max_tokens=2, temperature=0)
    logprobs = done["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"][1:]) == done["choices"][0]["text"]
    assert logprobs["token_logprobs"][0] is None


@STREAM
def test_each_choice_comes_with_its_index_and_all_are_counted(gateway: GatewayProcess, stream: bool) -> None:
    fields = {"messages": QUESTION, "n": 3, "temperature": 1, "max_tokens": 5, "ignore_eos": True}
    if stream:
        *chunks, last = streamed(gateway, CHAT, **fields, stream_options={"include_usage": True})
        assert all("usage" not in chunk for chunk in chunks)
        found = {choice["index"] for chunk in chunks for choice in chunk["choices"]}
        usage = last["usage"]
    else:
        done = asked(gateway, CHAT, **fields)
        found, usage = {choice["index"] for choice in done["choices"]}, done["usage"]
    assert found == {0, 1, 2}
    assert usage["completion_tokens"] == 15


def test_what_of_a_prompt_was_in_the_cache_is_told_and_counted(vllm: VllmFleet) -> None:
    """To one replica, since each has a cache of its own."""
    gateway = vllm.gateway
    prompt = "One gateway stands before many engines. " * 40
    known = gateway.sum_of("gllm_cached_prompt_tokens_total")
    told = []
    for _ in range(2):
        answer = gateway.http.post(
            COMPLETIONS, json={"prompt": prompt, "max_tokens": 1}, headers={"x-session-id": "cache"}
        )
        told.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert told[0] == 0
    assert told[1] > 100
    assert gateway.sum_of("gllm_cached_prompt_tokens_total") - known == told[1]


def test_token_ids_and_tokens_that_go_round(gateway: GatewayProcess) -> None:
    there = asked(gateway, "/tokenize", prompt="A container is", return_token_strs=True)
    assert there["count"] == len(there["tokens"]) == len(there["token_strs"])
    assert asked(gateway, "/detokenize", tokens=there["tokens"])["prompt"].endswith("A container is")
    done = asked(gateway, COMPLETIONS, prompt="A container is", max_tokens=3, return_token_ids=True)
    assert len(done["choices"][0]["token_ids"]) == 3
    assert done["choices"][0]["prompt_token_ids"] == there["tokens"]


# --- other dialects ---------------------------------------------------------------------------------------------------


def test_responses_are_answered_whole_and_streamed(gateway: GatewayProcess) -> None:
    fields = {"input": "What is Docker?", "max_output_tokens": 6, "temperature": 0}
    whole = asked(gateway, "/v1/responses", **fields)
    text = whole["output"][0]["content"][0]["text"]
    events = streamed(gateway, "/v1/responses", **fields)
    assert "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta") == text
    assert events[-1]["type"] in ("response.completed", "response.incomplete")
    assert events[-1]["response"]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] == 6


def test_messages_are_answered_whole_and_streamed(gateway: GatewayProcess) -> None:
    fields = {
        "messages": [{"role": "user", "content": "What is Docker?"}],
        "max_tokens": 6,
        "temperature": 0,
    }
    whole = asked(gateway, "/v1/messages", **fields)
    events = streamed(gateway, "/v1/messages", **fields)
    pieces = [each["delta"].get("text", "") for each in events if each["type"] == "content_block_delta"]
    assert "".join(pieces) == whole["content"][0]["text"]
    assert events[-1]["type"] == "message_stop"
    assert whole["usage"]["output_tokens"] == 6


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_the_other_dialects_are_counted_too(gateway: GatewayProcess, path: str) -> None:
    before = gateway.samples()["llm_generation_tokens_sum"]
    text = {"input": "Hi"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "Hi"}]}
    limit = {"max_output_tokens": 3} if path == "/v1/responses" else {"max_tokens": 3}
    streamed(gateway, path, **text, **limit)
    asked(gateway, path, **text, **limit)
    assert gateway.samples()["llm_generation_tokens_sum"] - before == 6


def test_what_a_generating_model_does_not_offer_is_501(gateway: GatewayProcess) -> None:
    answer = gateway.http.post("/v1/embeddings", json={"input": "A container"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "not_supported_by_engine")


# --- fields -----------------------------------------------------------------------------------------------------------

IGNORED = {
    CHAT: """
        audio best_of metadata modalities prediction prompt_cache_key prompt_cache_options prompt_cache_retention
        safety_identifier service_tier store verbosity
    """,
    COMPLETIONS: "best_of metadata",
    "/v1/responses": "prompt_cache_options prompt_cache_retention safety_identifier stream_options",
    "/v1/messages": "cache_control context_management service_tier",
    "/tokenize": "user",
    "/detokenize": "user",
}
"""OpenAI's and Anthropic's words that vLLM reads over: none of them changes what an answer may say."""

NEW = {(COMPLETIONS, "bad_words"): Version("0.26"), ("/v1/messages", "thinking"): Version("0.31")}
"""What older versions read over, too, and the first that does not (docs/engines.md)."""


@pytest.mark.parametrize("path", IGNORED)
def test_every_field_that_passes_is_one_that_this_vllm_knows(vllm: VllmFleet, path: str) -> None:
    """vLLM ignores what it does not know: whoever relies on it would not be told."""
    document = vllm.engines["engine-0"].http.get("/openapi.json").json()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    known = fields_of(schema, document["components"]["schemas"])
    too_new = {field for (on, field), since in NEW.items() if on == path and vllm.version < since}
    assert set(REQUESTS[Route(path)].__struct_fields__) - known == set(IGNORED[path].split()) | too_new


def fields_of(schema: dict[str, Any], named: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        return fields_of(named[schema["$ref"].rpartition("/")[2]], named)
    either = [fields_of(each, named) for each in (*schema.get("anyOf", ()), *schema.get("oneOf", ()))]
    return set(schema.get("properties", ())).union(*either)


def test_the_identity_of_a_request_is_the_same_in_vllms_answer(gateway: GatewayProcess) -> None:
    answer = gateway.http.post(CHAT, json={"messages": QUESTION, "max_tokens": 1}, headers={"x-request-id": "mine-1"})
    assert answer.json()["id"] == "chatcmpl-mine-1"
