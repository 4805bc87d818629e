"""What an engine's error is taken for. Never a word of it reaches the client."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engines.http import HttpEngine, Limits, Timeouts
from app.engines.http.refusals import MAX_RETRY_AFTER_S, refusal, retry_after
from app.errors import (
    ContextTooLong,
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineForgot,
    EngineLacks,
    EngineMisconfigured,
    EngineNonsense,
    EngineRefused,
)
from app.reliability.watch import Watch
from tests.engines.http.replica import Do, Replica, a_call, failure_of, sized


def openai(message: str = "no", **fields: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, **fields}}).encode()


def old_vllm(message: str, **fields: Any) -> bytes:
    return json.dumps({"object": "error", "message": message, "type": "BadRequestError", **fields}).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (500, b"Internal Server Error", EngineFailed),
        (502, b"", EngineFailed),
        (504, b"", EngineFailed),
        (599, b"", EngineFailed),
        (501, b"", EngineLacks),
        (503, openai(), EngineBusy),
        (429, openai(), EngineBusy),
        (401, b'{"error":"Unauthorized"}', EngineMisconfigured),
        (403, b"", EngineMisconfigured),
        (301, b"", EngineMisconfigured),
        (404, b'{"detail":"Not Found"}', EngineLacks),
        (404, openai("no such path", type="Not Found"), EngineLacks),
        (405, b'{"detail":"Method Not Allowed"}', EngineLacks),
        (404, openai("The model `x` does not exist.", code=404), EngineForgot),
        (404, openai("?", type="NotFoundError"), EngineForgot),
        (404, openai("?", code="model_not_found"), EngineForgot),
        (404, old_vllm("The model `x` does not exist."), EngineForgot),
        (404, b'{"error":"The model x does not exist"}', EngineForgot),
        (400, openai(), EngineRefused),
        (422, b'{"detail":[{"loc":["body","x"],"msg":"bad"}]}', EngineRefused),
        (413, b"", EngineRefused),
        (409, b"", EngineRefused),
        (400, b"", EngineRefused),
        (400, b"\xff\xfe", EngineRefused),
        (400, b"[" * 50_000, EngineRefused),
        (400, b"[1,2]", EngineRefused),
        (400, b"null", EngineRefused),
        (400, b'{"error":null}', EngineRefused),
        (400, b'{"error":{"message":{"a":1},"code":7,"param":[]}}', EngineRefused),
        (408, b"", EngineFailed),
        (206, b"", EngineNonsense),
        (700, b"", EngineNonsense),
    ],
)
def test_a_refusal_means(status: int, body: bytes, kind: type[EngineError]) -> None:
    assert type(refusal(status, {}, body)) is kind


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (old_vllm("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"), 4_096),
        (openai("This model's maximum context length is 16384 tokens. However, ..."), 16_384),
        (openai("'max_tokens' is too large: 9. This model's maximum context length is 8 tokens and ..."), 8),
        (openai("The decoder prompt (length 50) is longer than the maximum model length of 40. Make sure ..."), 40),
        (openai("The prompt (total length 9) is too long to fit into the model (context length 8). Make ..."), 8),
        (openai("The input (900 tokens) is longer than the model's context length (800 tokens)."), 800),
        (openai("max_tokens=5000 cannot be greater than max_model_len=2048. Please request fewer."), 2_048),
        (openai("It exceeds the maximum context length", param="messages"), None),
        (openai("?", code="context_length_exceeded"), None),
    ],
)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_context_that_is_too_long_is_told_as_such(status: int, body: bytes, tokens: int | None) -> None:
    error = refusal(status, {}, body)
    assert type(error) is ContextTooLong
    context = "context" if tokens is None else f"context of {tokens} tokens"
    assert error.message == f"The prompt and the tokens asked for do not fit into the model's {context}."


@pytest.mark.parametrize(
    ("param", "code", "kept"),
    [
        ("messages[0].content", "invalid_type", ("messages[0].content", "invalid_type")),
        ("temperature", None, ("temperature", None)),
        ("a" * 65, "b" * 65, (None, None)),
        ("/opt/secret.py", "Trace back", (None, None)),
        ("x\n", "y\n", (None, None)),
        ("", "", (None, None)),
        (17, 400, (None, None)),
    ],
)
def test_only_plausible_names_are_taken_over(param: Any, code: Any, kept: tuple[str | None, str | None]) -> None:
    error = refusal(400, {}, openai(param=param, code=code))
    assert (error.param, error.code) == kept


STACK = 'Traceback: File "/opt/vllm/engine.py" at 0x7f3a, key sk-engine\x1b[31m'


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 500, 501, 503])
def test_the_engines_words_are_kept_for_the_log_only(status: int) -> None:
    error = refusal(status, {}, openai(STACK), api_key="sk-engine")
    assert error.message == type(error).default
    detail = error.detail or ""
    assert detail.startswith(f"{status} ")
    assert "/opt/vllm/engine.py" in detail
    assert "sk-engine" not in detail
    assert detail.isprintable()


def test_what_is_kept_is_short() -> None:
    assert len(refusal(500, {}, b"x" * 60_000).detail or "") < 600


@given(st.integers(200, 999), st.binary(max_size=300))
def test_every_answer_means_something(status: int, body: bytes) -> None:
    assert isinstance(refusal(status, {}, body), EngineError)


# --- Retry-After --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7.0),
        (b" 0.5 ", 0.5),
        (b"0", 0.0),
        (b"86400", MAX_RETRY_AFTER_S),
        (b"Fri, 20 Nov 2026 10:00:30 GMT", 30.0),
        (b"Fri, 20 Nov 2026 09:00:00 GMT", 0.0),
        (b"Fri, 20 Nov 2026 23:00:00 GMT", MAX_RETRY_AFTER_S),
        (b"-1", None),
        (b"1e9", None),
        (b"inf", None),
        (b"soon", None),
        (b"Fri, 99 Nov 2026 10:00:30 GMT", None),
        ("٣".encode(), None),
        (b"", None),
    ],
)
def test_retry_after_is_read_as_seconds(value: bytes, seconds: float | None) -> None:
    assert retry_after({b"retry-after": value, b"date": b"Fri, 20 Nov 2026 10:00:00 GMT"}) == seconds


def test_a_date_without_the_engines_own_clock_is_compared_with_ours() -> None:
    assert retry_after({b"retry-after": b"Fri, 20 Nov 1998 10:00:30 GMT"}) == 0.0


# --- over the wire ------------------------------------------------------------------------------------------------


async def test_a_busy_engine_says_when_to_come_back(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, sized(openai(), head=b"HTTP/1.1 429 Busy\r\nRetry-After: 3\r\n"), Do.UNTIL_CLOSED)
    _, error = await failure_of(engine, a_call(stream=True))
    assert type(error) is EngineBusy
    assert error.retry_after == 3


@pytest.mark.parametrize("size", [100_000, 5_000_000])
async def test_an_error_without_end_is_not_read_to_its_end(replica: Replica, engine: HttpEngine, size: int) -> None:
    replica.plays(Do.REQUEST, b"HTTP/1.1 500 Oh\r\n\r\n" + b"x" * size, Do.UNTIL_CLOSED)
    for stream in (False, True):
        _, error = await failure_of(engine, a_call(stream=stream))
        assert type(error) is EngineFailed
    assert engine.open_connections == 0


async def test_an_error_larger_than_the_buffer_is_still_an_error(
    replica: Replica, watch: Watch, timeouts: Timeouts, limits: Limits
) -> None:
    replica.plays(Do.REQUEST, b"HTTP/1.1 500 Oh\r\n\r\n" + b"x" * 4_000, Do.UNTIL_CLOSED)
    small = replace(limits, buffer_bytes=1_000)
    engine = HttpEngine(f"http://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts, limits=small)
    _, error = await failure_of(engine, a_call(stream=True))
    assert type(error) is EngineFailed
    await engine.aclose()
