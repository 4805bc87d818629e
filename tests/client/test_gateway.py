"""The client and the real gateway, over sockets."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.engines.base import Engine
from app.engines.scripted import Scripted
from app.errors import EngineBroken
from app.gateway.app import Gateway
from app.settings import Settings
from gllm import GLLM, AsyncGLLM
from gllm.client import NotFound, RemoteError, TimedOut
from tests.client.conftest import HELLO
from tests.client.cutting import Cutting
from tests.client.scripted import PROMPTLY
from tests.support.server import serving

WORDS = ("Hello", ",", " wörld", ' "error"', "\n\n", " [DONE]", ".")
EVENTS = len(WORDS) + 4
"""With the role before them, and the finish, the usage that is kept from clients, and the end after them."""


class House:
    """A gateway on a socket, and a client that reaches it through what cuts."""

    def __init__(self, kind: str, engine: Scripted, gateway: Gateway, way: Cutting) -> None:
        self.kind = kind
        self.engine = engine
        self.gateway = gateway
        self.way = way
        self.url = f"http://127.0.0.1:{way.port}"

    async def call(self, method: str, *args: Any, **options: Any) -> Any:
        if self.kind == "sync":
            with GLLM(self.url, retries=PROMPTLY) as client:
                return await asyncio.to_thread(getattr(client, method), *args, **options)
        async with AsyncGLLM(self.url, retries=PROMPTLY) as aclient:
            return await getattr(aclient, method)(*args, **options)

    async def read(self, enough: int = 1_000, into: list[str] | None = None, **options: Any) -> list[str]:
        """As many pieces; then the stream is left."""
        found: list[str] = [] if into is None else into
        if self.kind == "sync":
            with GLLM(self.url, retries=PROMPTLY) as client:
                await asyncio.to_thread(_read, client, enough, found, options)
        else:
            async with (
                AsyncGLLM(self.url, retries=PROMPTLY) as aclient,
                aclient.stream_chat_completion("demo", HELLO, **options) as stream,
            ):
                async for piece in stream:
                    found.append(piece)
                    if len(found) == enough:
                        break
        return found

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not true():
                await asyncio.sleep(0.01)

    def idle(self) -> bool:
        return (self.engine.running, len(self.gateway.replays), self.gateway.admission.inside) == (0, 0, 0)


def _read(client: GLLM, enough: int, found: list[str], options: dict[str, Any]) -> None:
    with client.stream_chat_completion("demo", HELLO, **options) as stream:
        for piece in stream:
            found.append(piece)
            if len(found) == enough:
                break


@pytest.fixture
async def engine() -> Scripted:
    return Scripted(words=WORDS)


@pytest.fixture
async def house(kind: str, engine: Scripted, tmp_path: Path) -> AsyncIterator[House]:
    settings = Settings.load(env={}, env_file=None, LOG_LEVEL="error", STATE_DIR=tmp_path / "state")
    engines: dict[str, Engine] = {"only": engine}
    gateway = Gateway(settings, engines)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(gateway))
        house = House(kind, engine, gateway, await stack.enter_async_context(Cutting().before(port)))
        assert await house.call("wait_for_health", timeout=10, check_interval=0.05)
        yield house
        engine.go_on.set()
        await house.until(house.idle)


async def test_an_answer_and_a_stream_are_the_same_text(house: House) -> None:
    answer = await house.call("get_chat_completion", "demo", HELLO)
    assert answer.choices[0].message.content == "".join(WORDS)
    assert answer.usage.completion_tokens == len(WORDS)
    assert await house.read() == list(WORDS)


@pytest.mark.parametrize("cut", range(EVENTS))
async def test_a_stream_that_is_cut_after_any_event_is_whole_and_made_once(house: House, cut: int) -> None:
    house.way.after[:] = [cut]
    assert await house.read() == list(WORDS)
    assert len(house.engine.calls) == 1


async def test_a_stream_that_is_cut_at_every_event_is_whole_and_made_once(house: House) -> None:
    house.way.after[:] = [1] * (EVENTS - 2)
    assert await house.read() == list(WORDS)
    assert (len(house.engine.calls), house.way.cuts) == (1, EVENTS - 2)


async def test_a_stream_that_is_cut_while_the_engine_works_goes_on(house: House) -> None:
    house.engine.stall_at = 4
    house.way.after[:] = [2, 1]
    found: list[str] = []
    reading = asyncio.create_task(house.read(into=found))
    await house.until(lambda: len(found) == 3 and house.way.cuts == 2)
    house.engine.go_on.set()
    assert await reading == list(WORDS)
    assert len(house.engine.calls) == 1


async def test_leaving_a_stream_stops_the_engine_without_a_grace_time(house: House) -> None:
    house.engine.stall_at = 4
    assert await house.read(enough=2) == list(WORDS[:2])
    await house.until(house.idle)
    assert (house.engine.aborted, len(house.engine.calls)) == (1, 1)


async def test_breaking_out_of_the_loop_stops_the_engine_too(house: House) -> None:
    house.engine.stall_at = 4
    if house.kind == "sync":
        client = GLLM(house.url)

        def read() -> None:
            for _ in client.stream_chat_completion("demo", HELLO):
                break

        await asyncio.to_thread(read)
    else:
        aclient = AsyncGLLM(house.url)
        async for _ in aclient.stream_chat_completion("demo", HELLO):
            break
    gc.collect()
    await house.until(house.idle)
    assert house.engine.aborted == 1
    if house.kind == "sync":
        client.close()
    else:
        await aclient.aclose()


@pytest.mark.parametrize("kind", ["async"])
@pytest.mark.parametrize("method", ["get_chat_completion", "read"])
async def test_cancelling_stops_the_engine(house: House, method: str) -> None:
    house.engine.stall_at = 0
    asking = house.read() if method == "read" else house.call(method, "demo", HELLO)
    task = asyncio.create_task(asking)
    await house.until(lambda: house.engine.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await house.until(house.idle)
    assert house.engine.aborted == 1


async def test_a_deadline_is_the_gateways_too(house: House) -> None:
    house.engine.stall_at = 0
    with pytest.raises(TimedOut) as raised:
        await house.call("get_chat_completion", "demo", HELLO, timeout_s=0.3)
    assert (raised.value.status, raised.value.code) == (504, "deadline_exceeded")
    assert raised.value.request_id is not None
    await house.until(house.idle)
    assert len(house.engine.calls) == 1


async def test_a_stream_that_the_engine_breaks_raises_the_gateways_error(house: House) -> None:
    house.engine.break_at, house.engine.break_with = 4, EngineBroken
    found: list[str] = []
    with pytest.raises(RemoteError) as raised:
        await house.read(into=found)
    assert found == list(WORDS[:3])
    assert raised.value.code == "engine_interrupted"
    assert raised.value.request_id is not None


async def test_an_unknown_model_is_not_found(house: House) -> None:
    with pytest.raises(NotFound) as raised:
        await house.call("get_chat_completion", "other", HELLO)
    assert (raised.value.code, raised.value.param, len(house.engine.calls)) == ("model_not_found", "model", 0)


async def test_a_key_of_ones_own_is_answered_once(house: House) -> None:
    once, again = [
        await house.call("get_chat_completion", "demo", HELLO, return_mode="raw", idempotency_key="order-17")
        for _ in range(2)
    ]
    assert once == again
    assert len(house.engine.calls) == 1


async def test_priority_session_and_more_fields_are_taken(house: House) -> None:
    about = {"priority": "batch", "session_id": "s-1", "extra_body": {"top_p": 0.5}}
    await house.call("get_chat_completion", "demo", HELLO, **about)
    (call,) = house.engine.calls
    assert call.priority.name == "BATCH"
    assert b'"top_p": 0.5' in call.body
