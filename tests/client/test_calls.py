"""What is asked, what is tried again and what is not, by both clients alike."""

import asyncio
import json
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from gllm.client import (
    GLLM,
    AsyncGLLM,
    AuthenticationFailed,
    BrokenAnswer,
    Conflict,
    ConnectionFailed,
    NotFound,
    Overloaded,
    RateLimited,
    Refused,
    RemoteError,
    Retries,
    ServerFailed,
    TimedOut,
    http,
)
from gllm.client.errors import seconds_of
from tests.client.conftest import HELLO, Either, Make
from tests.client.scripted import Drops, Scripted, Silent, Whole, chat_answer, error

BUSY = Whole(503, error("queue_full", "overloaded_error"), {"retry-after": "3", "x-gllm-reason": "queue_full"})


def headers(server: Scripted, name: str) -> list[str | None]:
    return [asked.headers[name] for asked in server.posts]


# --- what is asked ------------------------------------------------------------------------------------------------


async def test_a_chat_says_what_was_given_and_leaves_the_rest_to_the_server(client: Either, server: Scripted) -> None:
    await client.do("get_chat_completion", "demo", HELLO, 100, 0.5)
    await client.chat(stop=["a"], min_p=0.1, n=2, extra_body={"top_p": 0.5, "tools": []})
    first, second = server.posts
    assert first.path == "/v1/chat/completions"
    assert first.body == {"model": "demo", "messages": HELLO, "max_tokens": 100, "temperature": 0.5, "n": 1}
    more = {"stop": ["a"], "min_p": 0.1, "n": 2, "top_p": 0.5, "tools": []}
    assert second.body == {"model": "demo", "messages": HELLO, **more}


async def test_a_completion_says_the_usual_numbers_too(client: Either, server: Scripted) -> None:
    server.otherwise = lambda asked: Whole(body=b'{"choices": [{"text": "one"}, {"text": "two"}]}')
    texts = await client.do("get_completions", "demo", "Once", return_mode="primitives")
    assert texts == ["one", "two"]
    usual = {"max_tokens": 16, "temperature": 1.0, "n": 1, "top_p": 1.0}
    none = {"frequency_penalty": 0.0, "presence_penalty": 0.0}
    assert server.posts[0].body == {"model": "demo", "prompt": "Once", **usual, **none}
    given: dict[str, Any] = {"best_of": 2, "echo": True, "logit_bias": {"5": 1.0}, "logprobs": 3, "seed": 4}
    given |= {"stop": "x", "min_p": 0.2, "max_tokens": 5, "temperature": 0.0, "n": 2, "top_p": 0.9}
    given |= {"frequency_penalty": 0.5, "presence_penalty": 0.6}
    await client.do("get_completions", "demo", ["a", "b"], **given)
    assert server.posts[1].body == {"model": "demo", "prompt": ["a", "b"], **given}


async def test_a_call_brings_a_key_its_own_and_its_callers_wishes(client: Either, server: Scripted) -> None:
    await client.chat()
    await client.chat(priority="batch", session_id="s-1", timeout_s=20, idempotency_key="order-17")
    first, second = server.posts
    assert uuid.UUID(first.headers["idempotency-key"]).version == 4
    for name in ("x-priority", "x-session-id", "x-request-timeout-ms", "authorization", "last-event-id"):
        assert first.headers[name] is None
    assert second.headers["idempotency-key"] == "order-17"
    assert (second.headers["x-priority"], second.headers["x-session-id"]) == ("batch", "s-1")
    assert 19_000 < int(second.headers["x-request-timeout-ms"]) <= 20_000


async def test_a_key_is_given_or_found_in_the_environment(
    make: Make, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make(api_key="given").chat()
    monkeypatch.setenv("GLLM_API_KEY", "found")
    await make().chat()
    await make(api_key="given").do("load_model", "demo")
    assert headers(server, "authorization") == ["Bearer given", "Bearer found", "Bearer given"]


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "//"])
async def test_an_address_may_end_as_people_write_it(make: Make, server: Scripted, tail: str) -> None:
    await make(url=server.url + tail).chat()
    assert server.posts[0].path == "/v1/chat/completions"


def test_an_address_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        GLLM("localhost:5333")


# --- what comes back ----------------------------------------------------------------------------------------------


async def test_an_answer_comes_in_each_mode(client: Either) -> None:
    answer = await client.chat()
    assert answer.choices[0].message.content == answer.choices[0].content == "Hello, world."
    assert answer.choices[0].role == answer.choices[0].message.role == "assistant"
    assert await client.chat(return_mode="primitives") == [{"role": "assistant", "content": "Hello, world."}]
    assert await client.chat(return_mode="raw") == json.loads(chat_answer())


async def test_an_answer_of_the_old_balancer_is_understood(client: Either, server: Scripted) -> None:
    server.otherwise = lambda asked: Whole(body=b'{"choices": [{"role": "assistant", "content": "Hi"}]}')
    answer = await client.chat()
    assert answer.choices[0].message.content == answer.choices[0].content == "Hi"
    assert await client.chat(return_mode="primitives") == [{"role": "assistant", "content": "Hi"}]


async def test_what_the_engine_adds_is_kept(client: Either, server: Scripted) -> None:
    server.otherwise = lambda asked: Whole(
        body=b'{"choices": [{"message": {"content": null, "reasoning": "so"}, "stop_reason": 7}], "extra": 1}'
    )
    answer = await client.chat()
    assert (answer.extra, answer.choices[0].stop_reason, answer.choices[0].message.reasoning) == (1, 7, "so")


async def test_this_machine_is_behind_no_proxy(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with GLLM(server.url) as client:
        assert client.is_healthy()
    async with AsyncGLLM(server.url) as aclient:
        assert await aclient.is_healthy()


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("http://localhost:8000", False),
        ("http://127.0.0.2", False),
        ("http://[::1]:8000", False),
        ("https://gateway.example", True),
        ("http://10.0.0.7:8000", True),
    ],
)
def test_any_other_machine_may_be(url: str, proxied: bool) -> None:
    assert http.may_be_proxied(url) is proxied


# --- mistakes are said at once ------------------------------------------------------------------------------------

MISTAKES: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"return_mode": "Primitives"}, ValueError),
    ({"timeout_s": 0}, ValueError),
    ({"timeout_s": float("nan")}, ValueError),
    ({"priority": "high"}, ValueError),
    ({"extra_body": {"temperature": float("nan")}}, ValueError),
    ({"no_such_option": 1}, TypeError),
]


@pytest.mark.parametrize(("options", "expected"), MISTAKES, ids=[next(iter(each)) for each, _ in MISTAKES])
@pytest.mark.parametrize("how", ["chat", "pieces"])
async def test_a_mistake_of_the_caller_is_never_sent(
    client: Either, server: Scripted, how: str, options: dict[str, Any], expected: type[Exception]
) -> None:
    with pytest.raises(expected):
        await getattr(client, how)(**options)
    assert (server.asked, client.pauses) == ([], [])


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e15])
async def test_a_time_without_an_end_is_as_long_as_can_be_said(
    client: Either, server: Scripted, timeout_s: float
) -> None:
    await client.chat(timeout_s=timeout_s)
    assert 999_900_000 < int(server.posts[0].headers["x-request-timeout-ms"]) <= 999_999_000


@pytest.mark.parametrize("key", ["gllm-sk\nX-Evil: 1", "gllm-sk-ключ"])
def test_a_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="api_key must be") as refused:
        GLLM("http://127.0.0.1:9", key)
    assert "gllm-sk" not in str(refused.value)


async def test_the_end_of_a_line_is_no_part_of_a_key(make: Make, server: Scripted) -> None:
    await make(api_key="gllm-sk\r\n").chat()
    assert server.posts[0].headers["authorization"] == "Bearer gllm-sk"


async def test_pieces_of_several_choices_are_refused(client: Either, server: Scripted) -> None:
    with pytest.raises(ValueError, match="n > 1"):
        await client.pieces(n=2)
    assert server.asked == []


# --- trying again -------------------------------------------------------------------------------------------------

PASSING = [
    Drops(),
    Whole(408, error("request_timeout")),
    Whole(409, error("idempotency_in_progress", "idempotency_error")),
    Whole(429, error("rate_limit_exceeded")),
    Whole(502, error("engine_failed")),
    Whole(503, error("queue_full")),
    Whole(504, error("deadline_exceeded")),
    Whole(502, b"<html>bad gateway</html>"),
    Whole(200, b'{"choices": [{"mess'),
    Whole(200, b"[]"),
    Whole(200, b'{"choices": [{"mess', declares=1_000),
]


@pytest.mark.parametrize("said", PASSING, ids=[str(getattr(each, "status", "drops")) for each in PASSING])
async def test_what_can_pass_is_tried_again_with_the_same_key(client: Either, server: Scripted, said: Any) -> None:
    server.says[:] = [said, said]
    answer = await client.chat()
    assert answer.choices[0].content == "Hello, world."
    keys = headers(server, "idempotency-key")
    assert (len(keys), len(set(keys))) == (3, 1)
    assert len({json.dumps(asked.body) for asked in server.posts}) == 1
    assert server.given_up == []


FINAL = [
    (400, "invalid_value", Refused),
    (401, "invalid_api_key", AuthenticationFailed),
    (403, "not_allowed", AuthenticationFailed),
    (404, "model_not_found", NotFound),
    (409, "idempotency_not_replayable", Conflict),
    (413, "request_too_large", Refused),
    (418, "teapot", Refused),
    (422, "idempotency_key_reused", Refused),
    (500, "internal_error", ServerFailed),
    (501, "not_supported_by_engine", ServerFailed),
]


@pytest.mark.parametrize(("status", "code", "kind"), FINAL)
async def test_what_cannot_succeed_is_sent_once(
    client: Either, server: Scripted, status: int, code: str, kind: type[RemoteError]
) -> None:
    server.says[:] = [Whole(status, error(code))] * 3
    with pytest.raises(kind) as raised:
        await client.chat()
    found = raised.value
    assert (found.status, found.code, found.request_id, found.retryable) == (status, code, "req-1", False)
    assert (len(server.asked), client.pauses) == (1, [])
    assert str(found) == f"It is {code}. (status {status}, code {code}, request req-1)"


@pytest.mark.parametrize("status", [409, 429, 502, 503])
async def test_a_server_that_says_no_retries_is_believed(client: Either, server: Scripted, status: int) -> None:
    code = "idempotency_in_progress" if status == 409 else "engine_failed"
    server.says[:] = [Whole(status, error(code), {"x-should-retry": "false"})]
    with pytest.raises(RemoteError) as raised:
        await client.chat()
    assert (raised.value.status, len(server.asked)) == (status, 1)


async def test_retry_after_is_waited_for(client: Either, server: Scripted) -> None:
    server.says[:] = [BUSY, Whole(429, error("rate_limit_exceeded"), {"retry-after": "0.5"})]
    await client.chat()
    assert client.pauses == [3.0, 0.5]


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 58 <= (seconds_of(later) or 0) <= 60
    assert [seconds_of(text) for text in ("7", "-1", "soon", None)] == [7.0, 0.0, None, None]


async def test_who_must_wait_longer_than_it_may_is_told_at_once(client: Either, server: Scripted) -> None:
    server.says[:] = [BUSY]
    with pytest.raises(Overloaded) as raised:
        await client.chat(timeout_s=2)
    found = raised.value
    assert (found.status, found.code, found.request_id, found.retry_after) == (503, "queue_full", "req-1", 3.0)
    assert (len(server.asked), client.pauses, found.retryable) == (1, [], True)


async def test_pauses_double_up_to_the_longest_and_are_drawn_at_random(make: Make, server: Scripted) -> None:
    client = make(Retries(most=6, jitter=lambda: 0.5, longest_pause_s=4.0, least_per_s=100))
    server.otherwise = lambda asked: Whole(502, error("engine_failed"))
    with pytest.raises(ServerFailed):
        await client.chat()
    assert client.pauses == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert len(server.asked) == 7


async def test_the_time_that_is_left_is_said_with_each_attempt(make: Make, server: Scripted) -> None:
    now = [100.0]
    client = make(Retries(first_pause_s=0, clock=lambda: now[0]))
    slow = Whole(503, error("queue_full"), {"retry-after": "3"})

    def later(asked: Any) -> Whole:
        now[0] += 4.0
        return slow

    server.otherwise = later
    with pytest.raises(Overloaded):
        await client.chat(timeout_s=10)
    assert headers(server, "x-request-timeout-ms") == ["10000", "6000"]


async def test_a_deadline_of_ones_own_that_has_passed_has_passed(client: Either, server: Scripted) -> None:
    server.says[:] = [Whole(504, error("deadline_exceeded"))]
    with pytest.raises(TimedOut) as raised:
        await client.chat(timeout_s=5)
    assert isinstance(raised.value, TimeoutError)
    assert (raised.value.code, len(server.asked)) == ("deadline_exceeded", 1)


async def test_a_silent_server_is_left_when_the_time_is_over(client: Either, server: Scripted) -> None:
    server.says[:] = [Silent()]
    began = time.monotonic()
    with pytest.raises(TimedOut):
        await client.chat(timeout_s=0.2)
    assert time.monotonic() - began < 2
    assert len(server.posts) == 1


async def test_a_server_that_is_not_there_is_tried_as_often_as_allowed(make: Make, server: Scripted) -> None:
    client = make(Retries(most=3, first_pause_s=0), url="http://127.0.0.1:9")
    with pytest.raises(ConnectionFailed) as raised:
        await client.chat()
    assert (raised.value.status, len(client.pauses)) == (None, 3)


async def test_an_answer_that_stays_broken_says_so(make: Make, server: Scripted) -> None:
    server.otherwise = lambda asked: Whole(200, b"nonsense")
    with pytest.raises(BrokenAnswer) as raised:
        await make(Retries(most=2, first_pause_s=0)).chat()
    assert (raised.value.status, raised.value.request_id, len(server.asked)) == (200, "req-1", 3)


async def test_all_calls_of_a_client_share_its_retries(make: Make, server: Scripted) -> None:
    now = 5.0
    client = make(Retries(first_pause_s=0, longest_pause_s=2.0, clock=lambda: now))
    server.otherwise = lambda asked: Whole(503, error("queue_full"))
    for _ in range(30):
        with pytest.raises(Overloaded):
            await client.chat()
    saved, by_calls, in_the_longest_pause = 10, 6, 2
    assert len(server.posts) - 30 <= saved + by_calls + in_the_longest_pause


# --- giving up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async"])
async def test_a_cancelled_call_tells_the_server(make: Make, server: Scripted) -> None:
    server.says[:] = [Silent()]
    task = asyncio.create_task(make().chat())
    while not server.asked:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.given_up == headers(server, "idempotency-key")


def test_ctrl_c_tells_the_server(server: Scripted) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    server.says[:] = [BUSY]
    with GLLM(server.url, sleep=interrupted) as client, pytest.raises(KeyboardInterrupt):
        client.get_chat_completion("demo", HELLO)
    assert server.given_up == headers(server, "idempotency-key")


def test_one_client_serves_many_threads(server: Scripted) -> None:
    said: list[str | None] = []
    with GLLM(server.url) as client:

        def ask() -> None:
            said.append(client.get_chat_completion("demo", HELLO).choices[0].content)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == ["Hello, world."] * 20
    assert len(set(headers(server, "idempotency-key"))) == 20


async def test_limits_of_the_caller_are_rate_limits(client: Either, server: Scripted) -> None:
    server.says[:] = [Whole(429, error("request_larger_than_limit"), {"x-should-retry": "false", "retry-after": "9"})]
    with pytest.raises(RateLimited) as raised:
        await client.chat()
    assert raised.value.retry_after == 9.0
