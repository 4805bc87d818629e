"""Health, and what is asked of the cluster."""

import math
from typing import Any

import pytest

from gllm.client import AuthenticationFailed, ConnectionFailed, LoadRefused, RemoteError, Retries
from tests.client.conftest import Either, Make
from tests.client.scripted import Asked, Scripted, Whole, error

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
async def nowhere(make: Make) -> Either:
    return make(url=NOWHERE)


async def test_a_model_is_loaded_with_the_words_of_gllm(client: Either, server: Scripted) -> None:
    said = b"Model load requested successfully."
    server.otherwise = lambda asked: Whole(200, said, {"content-type": "text/plain"})
    assert await client.do("load_model", "Qwen/Qwen2.5-7B") == said.decode()
    await client.do("load_model", model_identifier="other", force_reload=True, timeout=10)
    assert [(asked.path, asked.body) for asked in server.posts] == [
        ("/load_model", {"model_path": "Qwen/Qwen2.5-7B", "force_reload": False, "wait": True}),
        ("/load_model", {"model_path": "other", "force_reload": True, "wait": True}),
    ]
    assert client.client.last_loaded_model == "other"


async def test_a_load_that_is_refused_is_a_value_error_that_says_why(client: Either, server: Scripted) -> None:
    server.says[:] = [Whole(409, error("load_in_progress"), {"retry-after": "5"})]
    with pytest.raises(ValueError, match="load_in_progress") as raised:
        await client.do("load_model", "demo")
    found = raised.value
    assert isinstance(found, LoadRefused)
    assert isinstance(found, RemoteError)
    assert (found.status, found.code, found.request_id, found.retry_after) == (409, "load_in_progress", "req-1", 5.0)
    assert (len(server.asked), client.client.last_loaded_model) == (1, None)


async def test_a_refusal_in_plain_text_is_shown(client: Either, server: Scripted) -> None:
    server.says[:] = [Whole(500, b"Failed to load model on 1 workers:\n http://a", {"content-type": "text/plain"})]
    with pytest.raises(ValueError, match="on 1 workers"):
        await client.do("load_model", "demo")


async def test_gpus_are_released_and_workers_added(client: Either, server: Scripted) -> None:
    server.otherwise = lambda asked: Whole(200, b"demo")
    await client.do("release_gpus")
    assert await client.do("add_worker", "http://localhost:8300") == "demo"
    assert [(asked.path, asked.body) for asked in server.posts] == [
        ("/release_gpus", {}),
        ("/add_worker", {"address": "http://localhost:8300"}),
    ]


@pytest.mark.parametrize(("method", "args"), [("release_gpus", ()), ("add_worker", ("http://a",))])
async def test_a_command_is_sent_once_and_its_failure_is_raised(
    client: Either, server: Scripted, method: str, args: tuple[Any, ...]
) -> None:
    server.says[:] = [Whole(503, error("draining")), Whole(401, error("invalid_api_key"))]
    with pytest.raises(RemoteError, match="draining"):
        await client.do(method, *args)
    with pytest.raises(AuthenticationFailed):
        await client.do(method, *args)
    assert (len(server.asked), client.pauses) == (2, [])


@pytest.mark.parametrize("limit_s", [0, -1, float("nan")])
async def test_no_time_for_a_command_is_the_callers_mistake(client: Either, server: Scripted, limit_s: float) -> None:
    with pytest.raises(ValueError, match="timeout must be more than 0"):
        await client.do("release_gpus", timeout=limit_s)
    assert server.asked == []


async def test_a_command_may_take_as_long_as_it_likes(client: Either, server: Scripted) -> None:
    server.says[:] = [Whole(200, b"Gpus released")]
    await client.do("release_gpus", timeout=float("inf"))
    assert len(server.asked) == 1


async def test_a_command_to_nobody_is_a_remote_error(nowhere: Either) -> None:
    with pytest.raises(ConnectionFailed):
        await nowhere.do("release_gpus")


async def test_health_is_true_or_false_and_never_raises(client: Either, nowhere: Either, server: Scripted) -> None:
    server.says[:] = [Whole(200), Whole(503)]
    assert await client.do("is_healthy") is True
    assert await client.do("is_healthy") is False
    assert await nowhere.do("is_healthy", timeout=1) is False
    assert {asked.path for asked in server.asked} == {"/health"}


async def test_health_is_waited_for(client: Either, server: Scripted) -> None:
    server.says[:] = [Whole(503), Whole(503), Whole(200)]
    assert await client.do("wait_for_health", check_interval=2) is True
    assert client.pauses == [2, 2]


async def test_any_answer_is_life(client: Either, server: Scripted) -> None:
    server.says[:] = [Whole(503)]
    assert await client.do("wait_for_live") is None
    assert client.pauses == []


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("wait_for_health", "Server did not become healthy in time"),
        ("wait_for_live", "Server did not come live in time"),
    ],
)
async def test_waiting_ends_in_time(make: Make, server: Scripted, method: str, message: str) -> None:
    now = [0.0]

    def later(asked: Asked) -> Whole:
        now[0] += 3.0
        return Whole(503)

    server.otherwise = later
    ticking = Retries(clock=lambda: now[0])
    client = make(ticking) if method == "wait_for_health" else make(Retries(clock=iter(range(99)).__next__), NOWHERE)
    with pytest.raises(TimeoutError, match=message):
        await client.do(method, timeout=10, check_interval=4)
    assert client.pauses
    assert max(client.pauses) <= 4


async def test_waiting_for_no_number_of_seconds_ends_too(make: Make, server: Scripted) -> None:
    server.otherwise = lambda asked: Whole(503)
    client = make()
    with pytest.raises(TimeoutError):
        await client.do("wait_for_health", timeout=math.nan)
    assert client.pauses == []
