"""What every engine promises: whole events, honest errors, and that whoever leaves leaves nothing behind."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial

import msgspec
import pytest

from app.errors import DeadlinePassed, EngineBroken, EngineError, EngineFailed, EngineUnreachable
from app.wire.answers import stream_reader, usage_of
from app.wire.sse import data_of, split
from tests.contract.over_http import over_http
from tests.contract.real import real
from tests.contract.rig import Fault, Rig
from tests.contract.scripted import scripted
from tests.support.ports import free_port
from tests.support.processes import Engine, EngineSite
from tests.support.vllm import ON_VLLM, VllmFleet

RIGS: dict[str, Callable[[], AbstractAsyncContextManager[Rig]]] = {"scripted": scripted, "over http": over_http}
PROCESSES = ("transformers_engine", pytest.param("vllm_engine", marks=ON_VLLM))

STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
LIMIT_S = 10
"""For a whole test: an engine that hangs is a failure, not a wait."""


@pytest.fixture(scope="module")
def transformers_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine("contract", free_port(), tmp_path_factory.mktemp("contract"))
    try:
        engine.await_ready()
        yield engine
    finally:
        engine.end()


@pytest.fixture(scope="session")
def vllm_engine(vllm: VllmFleet) -> EngineSite:
    return vllm.engines["engine-0"]


@pytest.fixture(params=[*RIGS, *PROCESSES])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """In the end nothing is at work, whatever a test did."""
    start = RIGS.get(request.param) or partial(real, request.getfixturevalue(request.param))
    async with asyncio.timeout(LIMIT_S), start() as rig:
        try:
            yield rig
            await rig.comes_to(running=0)
        finally:
            await rig.engine.aclose()


async def answer(rig: Rig, *, stream: bool) -> list[bytes]:
    async with rig.engine.open(rig.call(stream=stream)) as blocks:
        return [block async for block in blocks]


# --- answers ------------------------------------------------------------------------------------------------------


async def test_a_stream_comes_in_blocks_of_whole_events(rig: Rig) -> None:
    blocks = await answer(rig, stream=True)
    assert all(block.endswith(b"\n\n") for block in blocks)
    events = [data_of(one) for block in blocks for one in split(block)]
    assert events[-1] == b"[DONE]"
    for each in events[:-1]:
        assert "choices" in json.loads(each)


async def test_a_stream_ends_as_the_wire_format_says(rig: Rig) -> None:
    call = rig.call(stream=True)
    reader = stream_reader(msgspec.structs.replace(call, shows_usage=True))
    async with rig.engine.open(call) as blocks:
        async for block in blocks:
            assert reader.read(block) == block
    reader.close()


async def test_a_stream_breaks_no_character(rig: Rig) -> None:
    text = ""
    for block in await answer(rig, stream=True):
        for one in split(block):
            if data_of(one) != b"[DONE]":
                for choice in json.loads(data_of(one))["choices"]:
                    text += choice["delta"].get("content") or ""
    assert text
    assert "\ufffd" not in text


async def test_anything_else_is_one_block_the_whole_body(rig: Rig) -> None:
    (body,) = await answer(rig, stream=False)
    assert json.loads(body)["choices"][0]["message"]["content"]
    assert usage_of(body) is not None


@STREAM
async def test_an_answer_that_has_ended_stays_ended(rig: Rig, stream: bool) -> None:
    async with rig.engine.open(rig.call(stream=stream)) as blocks:
        async for _ in blocks:
            pass
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(aiter(blocks))


@STREAM
async def test_many_answers_at_once_are_each_whole(rig: Rig, stream: bool) -> None:
    alone = b"".join(await answer(rig, stream=stream))
    together = await asyncio.gather(*(answer(rig, stream=stream) for _ in range(20)))
    assert {_said(b"".join(blocks)) for blocks in together} == {_said(alone)}


def _said(body: bytes) -> tuple[str, str | None]:
    """The text and why it ended: not what names an answer, what was in a cache, or how many tokens an event brought."""
    parts = [body]
    if body.startswith(b"data:"):
        *parts, end = map(data_of, split(body))
        assert end == b"[DONE]"
    choices = [choice for part in parts for choice in json.loads(part)["choices"]]
    texts = [(choice.get("delta") or choice.get("message") or {}).get("content") for choice in choices]
    return "".join(text or "" for text in texts), choices[-1].get("finish_reason")


# --- leaving ------------------------------------------------------------------------------------------------------


@STREAM
async def test_while_an_answer_is_made_the_engine_is_at_work_and_afterwards_it_is_not(rig: Rig, stream: bool) -> None:
    await rig.comes_to(running=0)
    task = asyncio.create_task(_opened(rig, stream=stream))
    await rig.comes_to(running=1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await rig.comes_to(running=0)


async def _opened(rig: Rig, *, stream: bool) -> None:
    """A long answer, read to its end, which does not come."""
    async with rig.engine.open(rig.call(stream=stream, long=True)) as blocks:
        async for _ in blocks:
            pass


async def test_leaving_after_the_first_block_stops_the_work(rig: Rig) -> None:
    async with rig.engine.open(rig.call(stream=True, long=True)) as blocks:
        assert await anext(aiter(blocks))
        await rig.comes_to(running=1)
    await rig.comes_to(running=0)


async def test_leaving_before_the_first_block_stops_the_work(rig: Rig) -> None:
    async with rig.engine.open(rig.call(stream=True, long=True)):
        await rig.comes_to(running=1)
    await rig.comes_to(running=0)


async def test_leaving_with_an_error_stops_the_work_and_lets_the_error_pass(rig: Rig) -> None:
    async def fails() -> None:
        async with rig.engine.open(rig.call(stream=True, long=True)) as blocks:
            await anext(aiter(blocks))
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        await fails()
    await rig.comes_to(running=0)


@STREAM
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 20])
async def test_a_cancel_at_any_moment_stops_the_work(rig: Rig, stream: bool, steps: int) -> None:
    task = asyncio.create_task(_opened(rig, stream=stream))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await rig.comes_to(running=0)


async def test_who_leaves_disturbs_nobody_else(rig: Rig) -> None:
    leaving = [asyncio.create_task(_opened(rig, stream=True)) for _ in range(5)]
    await rig.comes_to(running=5)
    staying = [asyncio.create_task(answer(rig, stream=True)) for _ in range(5)]
    for task in leaving:
        task.cancel()
    await asyncio.wait(leaving)
    for blocks in await asyncio.gather(*staying):
        assert b"".join(blocks).endswith(b"data: [DONE]\n\n")


@STREAM
async def test_after_any_number_of_hang_ups_the_engine_answers_as_before(rig: Rig, stream: bool) -> None:
    for _ in range(10):
        task = asyncio.create_task(_opened(rig, stream=stream))
        await rig.comes_to(running=1)
        task.cancel()
        await asyncio.wait([task])
    await rig.comes_to(running=0)
    assert await answer(rig, stream=stream)


# --- failing ------------------------------------------------------------------------------------------------------


@STREAM
@pytest.mark.parametrize("fault", Fault)
async def test_entering_raises_what_went_wrong_in_the_gateways_own_words(rig: Rig, stream: bool, fault: Fault) -> None:
    await rig.fails(fault)
    with pytest.raises(fault.error) as caught:
        async with rig.engine.open(rig.call(stream=stream)):
            pytest.fail("there is nothing to enter")
    assert type(caught.value) is fault.error
    for told in ("CUDA", "/srv", "0x", "Not Found", "Unauthorized"):
        assert told not in caught.value.message
    await rig.comes_to(running=0)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.UNREACHABLE])
async def test_after_a_failure_the_engine_answers_as_before(rig: Rig, fault: Fault) -> None:
    await rig.fails(fault)
    for stream in (False, True):
        with pytest.raises(EngineError):
            await answer(rig, stream=stream)
    await rig.fails(None)
    for stream in (False, True):
        assert await answer(rig, stream=stream)


async def test_a_stream_that_breaks_off_raises_after_what_came_whole(rig: Rig) -> None:
    await rig.breaks_off()
    seen: list[bytes] = []

    async def read() -> None:
        async with rig.engine.open(rig.call(stream=True)) as blocks:
            async for block in blocks:
                seen.append(block)  # noqa: PERF401 - what came before the error is wanted too

    with pytest.raises(EngineBroken):
        await read()
    assert seen
    assert all(block.endswith(b"\n\n") for block in seen)
    await rig.comes_to(running=0)


async def test_a_whole_answer_that_breaks_off_is_no_answer(rig: Rig) -> None:
    await rig.breaks_off()
    with pytest.raises((EngineBroken, EngineFailed)) as caught:
        await answer(rig, stream=False)
    assert caught.value.retryable
    await rig.comes_to(running=0)


# --- deadlines ----------------------------------------------------------------------------------------------------


@STREAM
async def test_an_engine_gives_up_when_the_time_of_its_call_is_over(rig: Rig, stream: bool) -> None:
    async def read() -> None:
        async with rig.engine.open(rig.call(stream=stream, long=True, expires_in_s=0.1)) as blocks:
            async for _ in blocks:
                pass

    with pytest.raises(DeadlinePassed):
        await read()
    await rig.comes_to(running=0)


@STREAM
async def test_a_call_that_comes_too_late_is_not_begun(rig: Rig, stream: bool) -> None:
    async def read() -> None:
        async with rig.engine.open(rig.call(stream=stream, expires_in_s=-1)) as blocks:
            async for _ in blocks:
                pass

    with pytest.raises(DeadlinePassed):
        await read()
    await rig.comes_to(running=0)


# --- models -------------------------------------------------------------------------------------------------------


async def test_the_models_are_told_with_their_context_length_where_it_is_known(rig: Rig) -> None:
    models = await rig.engine.models()
    assert rig.model in models
    assert all(length is None or length > 0 for length in models.values())


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.BUSY, Fault.FAILED])
async def test_an_engine_that_is_not_ready_tells_no_models(rig: Rig, fault: Fault) -> None:
    await rig.fails(fault)
    with pytest.raises(EngineError) as caught:
        await rig.engine.models()
    assert isinstance(caught.value, EngineUnreachable) == (fault is Fault.UNREACHABLE)
