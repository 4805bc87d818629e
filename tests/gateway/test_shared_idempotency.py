"""Several gateways over one Redis: one key space, and streams that are read at another one than they are made at."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineFailed
from app.reliability.stores.redis import SharedStore
from app.telemetry.record import Keyed
from tests.gateway.conftest import Build, House, asking
from tests.gateway.test_idempotency import KEY, asks, begin, executions, keyed
from tests.support.redis_server import redis_server

Houses = Callable[..., Awaitable[list[House]]]


@pytest.fixture
async def houses(build: Build, redis_url: str) -> AsyncIterator[Houses]:
    """Gateways that share a Redis, each with an engine of its own that does as the given one."""
    async with AsyncExitStack() as stack:

        async def make(count: int = 2, settings: dict[str, Any] | None = None, **engine: Any) -> list[House]:
            flags = {"REDIS_URL": redis_url, "REDIS_TIMEOUT": 2, **(settings or {})}
            made = [await build(settings=flags, only=Scripted(**engine)) for _ in range(count)]
            for house in made:
                beating = asyncio.create_task(house.gateway.storage.answers.run())
                stack.callback(beating.cancel)
                store = house.gateway.storage.shared
                assert isinstance(store, SharedStore)
                stack.push_async_callback(store.aclose)
            await made[0].gateway.storage.shared.command("FLUSHDB")  # type: ignore[union-attr]
            return made

        yield make


async def true(what: Callable[[], bool]) -> None:
    """Redis answers in its own time."""
    async with asyncio.timeout(10):
        while not what():
            await asyncio.sleep(0.005)


async def idle(houses: list[House]) -> None:
    await true(lambda: not any(len(house.gateway.replays) for house in houses))


@pytest.mark.parametrize("stream", [False, True])
async def test_fifty_equal_keys_over_three_gateways_are_one_execution(houses: Houses, stream: bool) -> None:
    three = await houses(3)
    tasks = [begin(house, asks(stream)) for _ in range(17) for house in three][:50]
    done = await asyncio.gather(*tasks)
    assert sum(map(executions, three)) == 1
    assert {each.status for each in done} == {200}
    assert len({each.body for each in done}) == 1
    assert sum("idempotent-replayed" not in each.headers for each in done) == 1


async def test_a_stream_is_read_along_at_another_gateway_and_gone_on_with_there(houses: Houses) -> None:
    here, there = await houses(stall_at=4)
    first = asks()
    running = begin(here, first)
    await true(lambda: len(first.blocks) == 4)
    twin, rest = asks(), asks(seen=2)
    tasks = [begin(there, twin), begin(there, rest)]
    await true(lambda: twin.body == first.body)
    assert first.body.endswith(rest.body)
    first.hang_up()
    await running
    here.engine.go_on.set()
    await asyncio.gather(*tasks)
    await idle([here, there])
    assert twin.events_numbered()[-1] == (7, "[DONE]")
    assert twin.body.endswith(rest.body)
    assert (executions(there), twin.headers["x-gllm-replica"]) == (0, "only")
    again = await asks().run(there.gateway.app)
    assert again.body == twin.body
    became = {record.id: record.keyed for record in there.recorder.records}
    for exchange, result in ((twin, Keyed.ATTACHED), (rest, Keyed.RESUMED), (again, Keyed.REPLAYED)):
        assert became[exchange.headers["x-request-id"]] is result


async def test_who_reads_elsewhere_keeps_a_run_alive_whose_own_client_has_gone(houses: Houses) -> None:
    here, there = await houses(settings={"IDEMPOTENCY_GRACE": 0}, stall_at=1)
    first, twin = asks(), asks()
    running = begin(here, first)
    await true(lambda: len(first.blocks) == 1)
    reading = begin(there, twin)
    await true(lambda: len(twin.blocks) == 1)
    first.hang_up()
    await running
    for _ in range(10):
        here.gateway.watch.sweep()
        await asyncio.sleep(0.01)
    here.engine.go_on.set()
    assert (await reading).events_numbered()[-1][1] == "[DONE]"
    await idle([here])
    assert here.engine.aborted == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_another_gateways_refusal_is_told_here_or_the_call_is_tried_here(houses: Houses, stream: bool) -> None:
    here, there = await houses(refuse_with=EngineFailed())
    done = await asyncio.gather(*(asks(stream).run(house.gateway.app) for house in (here, there)))
    assert {(each.status, each.error["code"]) for each in done} == {(502, "engine_failed")}
    await idle([here, there])


async def test_an_interrupted_stream_is_interrupted_elsewhere_too_and_its_key_is_free(houses: Houses) -> None:
    here, there = await houses(stall_at=2, break_at=2)
    first, twin = asks(), asks()
    running = [begin(here, first)]
    await true(lambda: len(first.blocks) == 2)
    running.append(begin(there, twin))
    await true(lambda: twin.body == first.body)
    here.engine.go_on.set()
    await asyncio.gather(*running)
    assert twin.body == first.body
    there.engine.break_at = there.engine.stall_at = None
    assert (await asks().run(there.gateway.app)).events_numbered()[-1][1] == "[DONE]"


async def test_when_a_gateway_ends_its_run_before_the_first_word_another_takes_it_on(houses: Houses) -> None:
    here, there = await houses(settings={"IDEMPOTENCY_GRACE": 0}, stall_at=0)
    first = asks()
    running = begin(here, first)
    await true(lambda: here.engine.running == 1)
    first.hang_up()
    await running
    twin = begin(there, asks())
    await true(lambda: len(there.gateway.replays) == 1)
    here.gateway.watch.sweep()
    there.engine.go_on.set()
    async with asyncio.timeout(20):
        while not twin.done():
            here.gateway.watch.sweep()
            await asyncio.sleep(0.01)
    assert (await twin).events_numbered()[-1][1] == "[DONE]"
    await idle([here, there])


async def test_another_body_is_refused_by_every_gateway(houses: Houses) -> None:
    here, there = await houses(stall_at=0)
    running = begin(here, asks())
    await true(lambda: here.engine.running == 1)
    refused = await there.post(asking(temperature=1), headers=keyed())
    assert (refused.status, refused.error["code"]) == (422, "idempotency_key_reused")
    here.engine.go_on.set()
    await running


async def test_where_twins_may_not_attach_they_may_not_elsewhere(houses: Houses) -> None:
    here, there = await houses(settings={"IDEMPOTENCY_ATTACH": False}, stall_at=0)
    running = begin(here, asks())
    await true(lambda: here.engine.running == 1)
    assert (await asks().run(there.gateway.app)).status == 409
    here.engine.go_on.set()
    await running


async def test_while_redis_is_down_keyed_requests_are_503_and_the_others_go_on(build: Build, tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        house = await build(settings={"REDIS_URL": redis.url})
        shared = house.gateway.storage.shared
        assert shared is not None
        redis.pause()
        refused = await asks().run(house.gateway.app)
        assert (refused.status, refused.headers["x-gllm-reason"]) == (503, "idempotency_unavailable")
        assert (await house.post(asking())).status == 200
        redis.resume()
        watching = [asyncio.create_task(shared.keep_watch()), asyncio.create_task(house.gateway.storage.answers.run())]
        await true(lambda: shared.available)
        assert (await asks().run(house.gateway.app)).status == 200
        for task in watching:
            task.cancel()
        await shared.aclose()


async def test_an_answer_that_redis_does_not_take_is_given_to_the_client_and_kept_when_it_does(
    build: Build, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as redis:
        house = await build(settings={"REDIS_URL": redis.url, "REDIS_TIMEOUT": 0.2}, only=Scripted(stall_at=1))
        shared = house.gateway.storage.shared
        assert shared is not None
        first = asks()
        running = begin(house, first)
        await true(lambda: len(first.blocks) == 1)
        redis.pause()
        house.engine.go_on.set()
        await running
        assert first.events_numbered()[-1][1] == "[DONE]"
        assert len(house.gateway.replays) == 1
        assert (await asks().run(house.gateway.app)).body == first.body, "from memory"
        redis.resume()
        watching = asyncio.create_task(shared.keep_watch())
        await idle([house])
        watching.cancel()
        assert (await shared.command("KEYS", f"*{KEY}*")) == [], "keys are told as digests"
        again = await asks().run(house.gateway.app)
        assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")
        await shared.aclose()
