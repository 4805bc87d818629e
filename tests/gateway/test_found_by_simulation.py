"""Defects that a simulation found and that are not mended yet, each in the fewest steps that show it."""

import asyncio

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineFailed, EngineStalled, Outcome
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import Exchange
from tests.support.until import until

CHAT = "/v1/chat/completions"


@pytest.mark.xfail(strict=True, reason="seed 442: what an engine does after [DONE] is told to the client")
async def test_nothing_follows_done_whatever_its_engine_does_then(build: Build) -> None:
    events = 8
    house = await build(only=Scripted(break_at=events, break_with=EngineStalled))
    done = await house.post(asking(stream=True))
    assert len(house.engine.works[0].made) == 4
    assert done.events()[-1] == "[DONE]"
    assert house.recorder.last.outcome is Outcome.OK


@pytest.mark.xfail(strict=True, reason="seed 286: a drain that ends work before its answer does not say when to return")
async def test_what_a_drain_ends_before_its_answer_is_told_when_to_come_again(build: Build) -> None:
    house = await build(only=Scripted(stall_at=0))
    exchange = Exchange(CHAT, asking())
    running = asyncio.create_task(exchange.run(house.gateway.app))
    await until(lambda: house.engine.running == 1)
    house.gateway.admission.drain(0.0)
    house.gateway.watch.sweep()
    await running
    await house.gateway.admission.empty()
    assert (exchange.status, exchange.error["code"]) == (503, "draining")
    assert int(exchange.headers["retry-after"]) >= 1


@pytest.mark.xfail(strict=True, reason="seed 241: behind somebody who avoids the free replica, a newcomer waits for it")
async def test_a_free_replica_does_not_wait_because_somebody_avoids_it(build: Build) -> None:
    failing = Scripted(refuse_with=EngineFailed(), refusals=1)
    full = Scripted(stall_at=0, serves={"demo": None, "another": None})
    house = await build(settings={"MAX_CONCURRENT_REQUESTS": 1}, failing=failing, full=full)
    async with asyncio.TaskGroup() as tasks:

        def comes(model: str) -> Exchange:
            exchange = Exchange(CHAT, asking(model=model))
            tasks.create_task(exchange.run(house.gateway.app))
            return exchange

        comes("another")
        await until(lambda: full.running == 1)
        comes("demo")
        await asyncio.wait_for(_some_wait(house), 5)
        newcomer = comes("demo")
        try:
            await until(lambda: newcomer.ended)
        finally:
            full.go_on.set()
    assert newcomer.headers["x-gllm-replica"] == "failing"


async def _some_wait(house: House) -> None:
    """After the pause before a second try."""
    while not house.gateway.admission.waiting:
        await asyncio.sleep(0.001)
