"""Defects that a simulation found and that are not mended yet, each in the fewest steps that show it."""

import asyncio

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineFailed
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import JSON, Exchange
from tests.support.clock import FakeClock
from tests.support.until import until

CHAT = "/v1/chat/completions"


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


@pytest.mark.xfail(strict=True, reason="seed 60: nobody is told when a circuit closes, and those in the line wait on")
async def test_when_a_circuit_closes_those_who_wait_are_served(build: Build) -> None:
    clock = FakeClock()
    failing = Scripted(refuse_with=EngineFailed(), refusals=1)
    full = Scripted(stall_at=0, serves={"demo": None, "another": None})
    rules = {"MAX_CONCURRENT_REQUESTS": 2, "CIRCUIT_FAILURES": 1, "CIRCUIT_PAUSE": 1, "MAX_ATTEMPTS": 1}
    house = await build(settings=rules, clock=clock, failing=failing, full=full)
    async with asyncio.TaskGroup() as tasks:

        def comes(model: str) -> Exchange:
            exchange = Exchange(CHAT, asking(model=model, stream=True))
            tasks.create_task(exchange.run(house.gateway.app))
            return exchange

        occupying = [comes("another") for _ in range(2)]
        await until(lambda: full.running == 2)
        unlucky = comes("demo")
        await until(lambda: unlucky.ended)
        assert unlucky.status == 502
        failing.stall_at = 1
        clock.advance(1)
        trying = comes("demo")
        await until(lambda: failing.running == 1)
        behind = comes("demo")
        await until(lambda: bool(trying.blocks))
        try:
            await until(lambda: bool(behind.blocks))
        finally:
            full.go_on.set()
            failing.go_on.set()
    assert all(exchange.ended for exchange in occupying)
    assert behind.headers["x-gllm-replica"] == "failing"


@pytest.mark.xfail(
    strict=True, reason="seed 1317: an engine's failure after [DONE] frees the key of an answer that was read"
)
async def test_an_answer_that_was_read_to_its_end_is_kept_whatever_its_engine_does_then(build: Build) -> None:
    events = 8
    house = await build(only=Scripted(break_at=events))
    keyed = [*JSON, (b"idempotency-key", b"once")]
    first, again = [await house.post(asking(stream=True), headers=keyed) for _ in range(2)]
    assert first.body.endswith(b"data: [DONE]\n\n")
    assert again.body == first.body
    assert len(house.engine.calls) == 1
