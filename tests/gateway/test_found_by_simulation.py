"""Defects that the simulation found, each in the fewest steps that showed it."""

import asyncio
from pathlib import Path

from app.engines.scripted import Scripted
from tests.gateway.conftest import Build, asking
from tests.support.asgi import JSON, Exchange
from tests.support.redis_server import redis_server
from tests.support.tenancy import signed, write_tenants
from tests.support.until import until

CHAT = "/v1/chat/completions"


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


async def test_an_answer_that_was_read_to_its_end_is_kept_whatever_its_engine_does_then(build: Build) -> None:
    events = 8
    house = await build(only=Scripted(break_at=events))
    keyed = [*JSON, (b"idempotency-key", b"once")]
    first, again = [await house.post(asking(stream=True), headers=keyed) for _ in range(2)]
    assert first.body.endswith(b"data: [DONE]\n\n")
    assert again.body == first.body
    assert len(house.engine.calls) == 1


async def test_a_deadline_is_kept_while_redis_says_nothing(build: Build, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    write_tenants(file, {"acme": {"concurrent": 1}})
    with redis_server(tmp_path) as redis:
        house = await build(settings={"REDIS_URL": redis.url, "REDIS_TIMEOUT": 60, "TENANTS_FILE": file})
        hurried = [(b"content-type", b"application/json"), (b"x-request-timeout-ms", b"100")]
        hurried += [(name.encode(), value.encode()) for name, value in signed("acme").items()]
        redis.pause()
        async with asyncio.timeout(30):
            exchange = await house.post(asking(), headers=hurried)
        assert house.gateway.storage.shared is not None
        assert house.gateway.storage.shared.available, "whose time was over says nothing about Redis"
        await house.gateway.storage.shared.aclose()
    assert (exchange.status, exchange.error["code"]) == (504, "deadline_exceeded")
