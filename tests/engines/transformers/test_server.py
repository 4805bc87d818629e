"""The real thing: the demo model behind a process of its own, spoken to over a socket as any client would."""

import asyncio
import base64
import json
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.engines.transformers.conftest import Running

QUESTION = [{"role": "user", "content": "What is a gateway?"}]
Json = dict[str, Any]


@pytest.fixture
async def client(engine: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=engine.url, timeout=30) as one:
        yield one


async def chat(client: httpx.AsyncClient, **fields: Any) -> Json:
    answer = await client.post("/v1/chat/completions", json={"messages": QUESTION} | fields)
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


async def complete(client: httpx.AsyncClient, **fields: Any) -> Json:
    answer = await client.post("/v1/completions", json=fields)
    assert answer.status_code == 200, answer.text
    body: Json = answer.json()
    return body


async def streamed(client: httpx.AsyncClient, path: str = "/v1/chat/completions", **fields: Any) -> list[Json]:
    """The events of a stream, and a check that it ended as it should."""
    body = {"messages": QUESTION, "stream": True} | fields
    if path == "/v1/completions":
        del body["messages"]
    async with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = (await answer.aread()).decode()
    events = text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def text_of(events: list[Json], index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


# --- shapes -----------------------------------------------------------------------------------------------------------


async def test_a_chat_answer_has_vllms_shape(client: httpx.AsyncClient) -> None:
    body = await chat(client, max_tokens=8, temperature=0)
    usage = body.pop("usage")
    (choice,) = body.pop("choices")
    assert body.pop("id").startswith("chatcmpl-")
    assert abs(body.pop("created") - time.time()) < 60
    assert body == {
        "object": "chat.completion",
        "model": "demo",
        "system_fingerprint": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
    }
    assert choice.pop("message").keys() == {"role", "content", "refusal", "tool_calls"}
    assert choice == {
        "index": 0,
        "logprobs": None,
        "finish_reason": "length",
        "stop_reason": None,
        "token_ids": None,
    }
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + 8


async def test_a_chat_stream_has_vllms_events(client: httpx.AsyncClient) -> None:
    events = await streamed(client, max_tokens=12, temperature=0, stream_options={"include_usage": True})
    first, *middle, last, usage = events
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert all(event["choices"][0]["finish_reason"] is None for event in middle)
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["choices"][0]["stop_reason"] is None
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 12
    assert not any("usage" in event for event in events[:-1])


async def test_usage_can_stand_in_every_event(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = await streamed(client, max_tokens=6, temperature=0, stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 6


async def test_in_an_event_it_is_that_of_its_choice_as_in_vllm(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked: Json = {"prompt": ["A queue is", "Docker"], "max_tokens": 4, "ignore_eos": True, "n": 2}
    *events, last = await streamed(client, "/v1/completions", **asked, stream_options=options)
    counts = {event["choices"][0]["index"]: event["usage"] for event in events}
    assert [counts[index]["completion_tokens"] for index in range(4)] == [4] * 4
    prompts = [counts[index]["prompt_tokens"] for index in range(4)]
    assert prompts[:2] != prompts[2:]
    assert sum(prompts) == 2 * last["usage"]["prompt_tokens"]
    assert last["usage"]["completion_tokens"] == 16


async def test_a_completion_stream_has_vllms_events(client: httpx.AsyncClient) -> None:
    events = await streamed(client, "/v1/completions", prompt="A queue is", max_tokens=6, temperature=0)
    assert {event["object"] for event in events} == {"text_completion"}
    assert {*events[0]["choices"][0]} >= {"index", "text", "logprobs", "finish_reason", "stop_reason"}
    whole = await complete(client, prompt="A queue is", max_tokens=6, temperature=0)
    assert text_of(events) == whole["choices"][0]["text"]


async def test_token_ids_come_with_every_event_and_say_the_whole_answer(client: httpx.AsyncClient) -> None:
    events = await streamed(client, max_tokens=10, temperature=0, return_token_ids=True)
    whole = await chat(client, max_tokens=10, temperature=0, return_token_ids=True)
    ids = [id_ for event in events for choice in event["choices"] for id_ in choice.get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"]
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert len(whole["prompt_token_ids"]) == whole["usage"]["prompt_tokens"]


async def test_chat_logprobs(client: httpx.AsyncClient) -> None:
    fields: Json = {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    content = (await chat(client, **fields))["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    for token in content:
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0]["logprob"] == token["logprob"] <= 0
        assert bytes(token["bytes"]).decode(errors="replace") == token["token"]
    events = await streamed(client, **fields)
    told = [choice["logprobs"]["content"] for event in events for choice in event["choices"] if choice["logprobs"]]
    assert [each["token"] for part in told for each in part] == [each["token"] for each in content]


async def test_completion_logprobs(client: httpx.AsyncClient) -> None:
    body = await complete(client, prompt="A queue is", max_tokens=5, temperature=0, logprobs=2)
    choice = body["choices"][0]
    logprobs = choice["logprobs"]
    assert {key: len(value) for key, value in logprobs.items()} == dict.fromkeys(logprobs, 5)
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:at])) for at in range(5)]


async def test_embeddings_are_of_length_one_and_near_for_near_texts(client: httpx.AsyncClient) -> None:
    texts = ["The queue is full.", "The queue is full!", "A replica holds a lease."]
    body = (await client.post("/v1/embeddings", json={"input": texts})).json()
    vectors = [each["embedding"] for each in body["data"]]
    dot = [sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors]
    assert dot[0] == pytest.approx(1.0, abs=1e-5)
    assert dot[1] > dot[2]
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 10
    packed = (await client.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"})).json()
    raw = base64.b64decode(packed["data"][2]["embedding"])
    assert struct.unpack(f"<{len(vectors[2])}f", raw) == pytest.approx(vectors[2])


async def test_tokenize_and_detokenize(client: httpx.AsyncClient) -> None:
    asked = {"prompt": "A full queue.", "add_special_tokens": False, "return_token_strs": True}
    body = (await client.post("/tokenize", json=asked)).json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"])
    assert body["max_model_len"] == 2048
    assert (await client.post("/detokenize", json={"tokens": body["tokens"]})).json() == {"prompt": "A full queue."}
    chatted = (await client.post("/tokenize", json={"messages": QUESTION})).json()
    assert chatted["count"] == (await chat(client, max_tokens=1))["usage"]["prompt_tokens"]
    assert chatted["token_strs"] is None


async def test_models_health_and_version(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("demo", "model", 2048)
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/version")).json()["version"]


# --- text -------------------------------------------------------------------------------------------------------------


async def test_streamed_text_is_the_text(client: httpx.AsyncClient) -> None:
    for sampling in ({"temperature": 0}, {"temperature": 1.2, "seed": 3}, {"temperature": 1, "top_p": 0.8, "seed": 4}):
        whole = await chat(client, max_tokens=60, **sampling)
        events = await streamed(client, max_tokens=60, **sampling)
        assert text_of(events) == whole["choices"][0]["message"]["content"]


async def test_the_same_seed_gives_the_same_text_whatever_else_is_in_the_batch(client: httpx.AsyncClient) -> None:
    fields: Json = {"max_tokens": 80, "temperature": 1.0, "seed": 1234}
    alone = (await chat(client, **fields))["choices"][0]["message"]["content"]
    crowd = [chat(client, max_tokens=60, temperature=1.6, seed=seed) for seed in range(10)]
    again, *others = await asyncio.gather(chat(client, **fields), *crowd)
    assert again["choices"][0]["message"]["content"] == alone
    assert len({other["choices"][0]["message"]["content"] for other in others}) > 5


async def test_wild_text_is_never_broken_utf8(client: httpx.AsyncClient) -> None:
    """Far from what it was taught the model produces halves of characters; pieces and whole must still agree."""
    fields: Json = {"max_tokens": 120, "temperature": 2.0, "seed": 8, "ignore_eos": True, "skip_special_tokens": False}
    events = await streamed(client, return_token_ids=True, **fields)
    ids = [id_ for event in events for choice in event["choices"] for id_ in choice.get("token_ids", [])]
    whole = (await client.post("/detokenize", json={"tokens": ids})).json()["prompt"]
    assert text_of(events) == whole


async def test_a_stop_string_across_tokens_ends_the_text_before_it(client: httpx.AsyncClient) -> None:
    full = (await chat(client, max_tokens=60, temperature=0))["choices"][0]["message"]["content"]
    middle = full[len(full) // 2 :][:7]
    expected = full[: full.index(middle)]
    fields: Json = {"max_tokens": 60, "temperature": 0, "stop": ["never appears", middle]}
    body = await chat(client, **fields)
    events = await streamed(client, **fields)
    (choice,) = body["choices"]
    assert choice["message"]["content"] == text_of(events) == expected
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", middle)
    assert events[-1]["choices"][0]["stop_reason"] == middle
    assert body["usage"]["completion_tokens"] < 60
    included = await chat(client, include_stop_str_in_output=True, **fields)
    assert included["choices"][0]["message"]["content"] == expected + middle


async def test_a_stop_token_is_named_as_the_reason(client: httpx.AsyncClient) -> None:
    ids = (await chat(client, max_tokens=9, temperature=0, return_token_ids=True))["choices"][0]["token_ids"]
    body = await chat(client, max_tokens=9, temperature=0, stop_token_ids=[ids[5]], return_token_ids=True)
    (choice,) = body["choices"]
    assert choice["token_ids"] == ids[: ids.index(ids[5]) + 1]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ids[5])


async def test_the_models_own_end_is_a_stop_and_can_be_ignored(client: httpx.AsyncClient) -> None:
    body = await chat(client, max_tokens=400, temperature=0)
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["stop_reason"] is None
    ended = body["usage"]["completion_tokens"]
    on = await chat(client, max_tokens=ended + 20, temperature=0, ignore_eos=True)
    assert (on["usage"]["completion_tokens"], on["choices"][0]["finish_reason"]) == (ended + 20, "length")
    longer = await chat(client, max_tokens=400, temperature=0, min_tokens=ended + 5)
    assert longer["usage"]["completion_tokens"] >= ended + 5


async def test_without_a_limit_a_chat_goes_on_to_the_context_and_a_completion_stops_at_sixteen(
    client: httpx.AsyncClient,
) -> None:
    long = [{"role": "user", "content": "queue" + " queue" * 1_800}]
    body = await chat(client, messages=long, temperature=0, ignore_eos=True)
    assert body["usage"]["total_tokens"] == 2048
    body = await complete(client, prompt="A queue", temperature=0, ignore_eos=True)
    assert body["usage"]["completion_tokens"] == 16


async def test_choices_and_prompts_are_numbered(client: httpx.AsyncClient) -> None:
    fields: Json = {"prompt": ["A queue", "A token"], "n": 2, "max_tokens": 8, "temperature": 2, "seed": 5}
    body = await complete(client, **fields)
    events = await streamed(client, "/v1/completions", **fields)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [text_of(events, index) for index in range(4)] == [choice["text"] for choice in body["choices"]]
    first, second, third, fourth = (choice["text"] for choice in body["choices"])
    assert first != second  # one prompt, other luck
    assert third != fourth
    assert body["usage"]["completion_tokens"] == 32


async def test_an_answer_can_be_continued(client: httpx.AsyncClient) -> None:
    full = (await chat(client, max_tokens=30, temperature=0))["choices"][0]["message"]["content"]
    begun = full[: full.index(" ", len(full) // 3)]
    messages = [*QUESTION, {"role": "assistant", "content": begun}]
    fields: Json = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    rest = await chat(client, max_tokens=30, temperature=0, **fields)
    assert (begun + rest["choices"][0]["message"]["content"]).startswith(full)


async def test_echo(client: httpx.AsyncClient) -> None:
    body = await complete(client, prompt="A queue is", max_tokens=4, temperature=0, echo=True)
    assert body["choices"][0]["text"].startswith("A queue is")
    events = await streamed(client, "/v1/completions", prompt="A queue is", max_tokens=4, temperature=0, echo=True)
    assert text_of(events) == body["choices"][0]["text"]


async def test_sampling_settings_reach_the_model(client: httpx.AsyncClient) -> None:
    ids = (await chat(client, max_tokens=1, temperature=0, return_token_ids=True))["choices"][0]["token_ids"]
    banned = await chat(client, max_tokens=1, temperature=0, logit_bias={str(ids[0]): -100}, return_token_ids=True)
    assert banned["choices"][0]["token_ids"] != ids
    forced = await chat(client, max_tokens=5, temperature=1, logit_bias={"300": 100}, return_token_ids=True)
    assert forced["choices"][0]["token_ids"] == [300] * 5
    varied = await chat(
        client, max_tokens=5, temperature=0, logit_bias={"300": 30}, presence_penalty=2, return_token_ids=True
    )
    assert varied["choices"][0]["token_ids"] == [300] * 5
    spread = await chat(client, max_tokens=24, temperature=0, repetition_penalty=10, return_token_ids=True)
    assert len(set(spread["choices"][0]["token_ids"])) == 24


async def test_a_prompt_seen_before_is_read_from_the_cache(client: httpx.AsyncClient, engine: Running) -> None:
    messages = [{"role": "user", "content": "Explain a lease, a slot and a commit point. " * 5}]
    hits = engine.metric("vllm:prefix_cache_hits_total")
    first = await chat(client, messages=messages, max_tokens=4, temperature=0)
    again = await chat(client, messages=messages, max_tokens=4, temperature=0)
    cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > first["usage"]["prompt_tokens"] - 17
    assert engine.metric("vllm:prefix_cache_hits_total") >= hits + cached
    assert again["choices"] == first["choices"]


# --- going away -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def raw_request(engine: Running, *, key: str = "none", **fields: Any) -> AsyncIterator[asyncio.StreamReader]:
    """A chat over a bare socket, that is closed without a word at the end of the block."""
    body = json.dumps({"messages": QUESTION, "ignore_eos": True, "max_tokens": 1900} | fields).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        yield reader
    finally:
        writer.transport.abort()


async def settled(engine: Running, name: str, value: float, limit_s: float) -> float:
    begun = time.monotonic()
    while await asyncio.to_thread(engine.metric, name) != value:
        assert time.monotonic() - begun < limit_s, f"{name} is not {value} after {limit_s} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - begun


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_up_ends_the_work_at_once(engine: Running, stream: bool) -> None:
    aborted = engine.metric("vllm:request_success_total", finished_reason="abort")
    async with raw_request(engine, stream=stream) as reader:
        await settled(engine, "vllm:num_requests_running", 1, 2)
        if stream:
            await reader.readuntil(b"assistant")
    await settled(engine, "vllm:num_requests_running", 0, 0.8)
    await settled(engine, "vllm:kv_cache_usage_perc", 0, 0.8)
    assert engine.metric("vllm:request_success_total", finished_reason="abort") == aborted + 1


async def test_many_hang_ups_leave_nothing_behind(engine: Running, client: httpx.AsyncClient) -> None:
    for _ in range(3):
        async with asyncio.TaskGroup() as group:

            async def come_and_go(wait_s: float) -> None:
                async with raw_request(engine, stream=True, n=2):
                    await asyncio.sleep(wait_s)

            for at in range(20):
                group.create_task(come_and_go(at * 0.005))
    await settled(engine, "vllm:num_requests_running", 0, 2)
    await settled(engine, "vllm:num_requests_waiting", 0, 2)
    await settled(engine, "vllm:kv_cache_usage_perc", 0, 2)
    assert await chat(client, max_tokens=3)


# --- what is not right ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code", "param"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, "invalid_json", None),
        ("POST", "/v1/chat/completions", b"[]", 400, "invalid_type", None),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400, "invalid_type", None),
        ("POST", "/v1/chat/completions", b"{}", 400, "missing_required_parameter", "messages"),
        ("POST", "/v1/chat/completions", b'{"messages":[]}', 400, "invalid_value", "messages"),
        ("POST", "/v1/completions", b'{"prompt":"a","temperature":NaN}', 400, "invalid_json", None),
        ("POST", "/v1/completions", b'{"prompt":"a","n":0}', 400, "invalid_value", "n"),
        ("POST", "/v1/completions", b'{"prompt":"a","api_base":"x"}', 400, "unsupported_parameter", "api_base"),
        ("POST", "/v1/completions", b'{"prompt":"a","model":"other"}', 404, "model_not_found", "model"),
        ("POST", "/v1/completions", b'{"prompt":"a","max_tokens":4000}', 400, "context_length_exceeded", "prompt"),
        ("POST", "/v1/embeddings", b'{"input":"a","dimensions":3}', 400, "unsupported_parameter", "dimensions"),
        ("POST", "/v1/nothing", b"{}", 404, "not_found", None),
        ("GET", "/v1/chat/completions", b"", 405, "method_not_allowed", None),
        ("DELETE", "/health", b"", 405, "method_not_allowed", None),
        ("GET", "//v1/models", b"", 404, "not_found", None),
        ("GET", "/docs", b"", 404, "not_found", None),
    ],
)
async def test_mistakes_are_answered_in_openais_shape(
    engine: Running, method: str, path: str, content: bytes, status: int, code: str, param: str | None
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.request(method, engine.url + path, content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error.keys() == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert len(error["message"]) < 300


async def test_the_right_media_type_is_asked_for(client: httpx.AsyncClient) -> None:
    answer = await client.post("/tokenize", content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


async def test_a_body_that_is_too_large_is_cut_off(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 1_000_000

    for content in (b" " * 17_000_000, endless()):
        try:
            answer = await client.post("/tokenize", content=content)
        except httpx.WriteError:  # cut off while sending is an answer too
            continue
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_request_id_is_given_back_or_made(client: httpx.AsyncClient) -> None:
    kept = await client.get("/health", headers={"x-request-id": "abc-1"})
    assert kept.headers["x-request-id"] == "abc-1"
    made = await client.get("/health", headers={"x-request-id": "<script>"})
    assert made.headers["x-request-id"] not in ("<script>", "")


# --- metrics ----------------------------------------------------------------------------------------------------------


async def test_metrics_count_what_was_done(client: httpx.AsyncClient, engine: Running) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:e2e_request_latency_seconds_count")
    before = [engine.metric(name) for name in names]
    body = await chat(client, max_tokens=7, n=2, temperature=1)
    usage = body["usage"]
    after = [engine.metric(name) for name in names]
    grown = [new - old for new, old in zip(after, before, strict=True)]
    assert grown == [2 * usage["prompt_tokens"], usage["completion_tokens"], 2]


async def test_metrics_have_vllms_names_and_labels(client: httpx.AsyncClient) -> None:
    await chat(client, max_tokens=3)
    page = (await client.get("/metrics")).text
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total"),
        *("prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total", "prefix_cache_hits_total"),
        *("time_to_first_token_seconds_count", "inter_token_latency_seconds_count", "iteration_tokens_total_count"),
        *("e2e_request_latency_seconds_count", "request_queue_time_seconds_count"),
        *("request_prompt_tokens_count", "request_generation_tokens_count"),
    ):
        assert f'vllm:{name}{{engine="0",model_name="demo"}}' in page
    for reason in ("stop", "length", "abort", "error"):
        assert f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="demo"}}' in page
