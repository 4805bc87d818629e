"""A stream that flows: its blocks go on in the callback that reads them, and nobody is woken for each."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.engines.base import PassOn, flow
from app.engines.http import HttpEngine
from app.errors import EngineBroken, EngineStalled
from app.reliability.watch import Watch
from tests.engines.http.replica import (
    CHUNKED,
    LAST_CHUNK,
    SSE,
    Do,
    Replica,
    a_call,
    an_event,
    chunk,
    turns,
)
from tests.support.clock import FakeClock

ONE, TWO, THREE = an_event("one"), an_event("two"), an_event("three")


def slowly(replica: Replica, *events: bytes) -> None:
    """Each but the first waits for a word of the test."""
    parts = [step for event in events[1:] for step in (Do.PAUSE, chunk(event))]
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(events[0]), *parts, LAST_CHUNK, Do.UNTIL_CLOSED)


async def flowing(exchange: AsyncIterator[bytes], pass_on: PassOn) -> "asyncio.Task[bool]":
    """It has had what was there, and waits."""
    running = asyncio.get_running_loop().create_task(flow(exchange, pass_on))
    await turns(20)
    return running


class Reader:
    """Takes so many blocks, and then no more."""

    def __init__(self, room: int = 1_000) -> None:
        self.room = room
        self.blocks: list[bytes] = []
        self.tasks: list[asyncio.Task[object] | None] = []

    def pass_on(self, block: bytes) -> bool:
        self.blocks.append(block)
        self.tasks.append(asyncio.current_task())
        return len(self.blocks) < self.room


async def test_no_task_is_woken_for_what_comes_while_it_waits(replica: Replica, engine: HttpEngine) -> None:
    slowly(replica, ONE, TWO, THREE)
    reader = Reader()
    async with engine.open(a_call(stream=True)) as exchange:
        running = await flowing(exchange, reader.pass_on)
        for read in (1, 2):
            await turns(20)
            assert len(reader.blocks) == read
            replica.go_on()
        assert await running is False
    assert reader.blocks == [ONE, TWO, THREE]
    assert reader.tasks == [running, None, None]  # the first one was there before anybody waited


async def test_who_has_enough_is_given_nothing_until_they_ask_again(replica: Replica, engine: HttpEngine) -> None:
    slowly(replica, ONE, TWO, THREE)
    reader = Reader(room=1)
    async with engine.open(a_call(stream=True)) as exchange:
        assert await flow(exchange, reader.pass_on) is True
        replica.go_on()
        replica.go_on()
        await turns(50)
        assert reader.blocks == [ONE]
        reader.room = 1_000
        assert await flow(exchange, reader.pass_on) is False
    assert b"".join(reader.blocks) == ONE + TWO + THREE


async def test_what_passing_on_raises_ends_the_stream_and_its_work(replica: Replica, engine: HttpEngine) -> None:
    slowly(replica, ONE, TWO, THREE)

    def refuses_two(block: bytes) -> bool:
        if block == TWO:
            raise EngineBroken(detail="two")
        return True

    async with engine.open(a_call(stream=True)) as exchange:
        running = await flowing(exchange, refuses_two)
        replica.go_on()
        with pytest.raises(EngineBroken):
            await running
    assert engine.open_connections == 0


async def test_who_gives_up_is_given_nothing_more(replica: Replica, engine: HttpEngine) -> None:
    slowly(replica, ONE, TWO)
    reader = Reader()
    async with engine.open(a_call(stream=True)) as exchange:
        running = await flowing(exchange, reader.pass_on)
        running.cancel()
        replica.go_on()
        await asyncio.wait({running})
        await turns(20)
        assert running.cancelled()
        assert reader.blocks == [ONE]
        assert await anext(exchange) == TWO


async def test_each_block_allows_the_next_one_its_time(
    replica: Replica, engine: HttpEngine, watch: Watch, clock: FakeClock
) -> None:
    slowly(replica, ONE, TWO, THREE)
    reader = Reader()
    async with engine.open(a_call(stream=True)) as exchange:
        running = await flowing(exchange, reader.pass_on)
        for _ in range(2):
            await turns(20)
            clock.advance(4)  # of five
            watch.sweep()
            replica.go_on()
        await turns(20)
        assert not running.done() or running.result() is False
        assert reader.blocks == [ONE, TWO, THREE]
        await running


async def test_a_flow_that_stops_flowing_has_stalled(
    replica: Replica, engine: HttpEngine, watch: Watch, clock: FakeClock
) -> None:
    slowly(replica, ONE, TWO, THREE)
    reader = Reader()
    async with engine.open(a_call(stream=True)) as exchange:
        running = await flowing(exchange, reader.pass_on)
        replica.go_on()
        await turns(20)
        clock.advance(6)
        watch.sweep()
        with pytest.raises(EngineStalled):
            await running
    assert reader.blocks == [ONE, TWO]


async def test_the_last_block_and_the_end_may_come_together(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.PAUSE, chunk(TWO) + LAST_CHUNK, Do.UNTIL_CLOSED)
    reader = Reader()
    async with engine.open(a_call(stream=True)) as exchange:
        running = await flowing(exchange, reader.pass_on)
        replica.go_on()
        assert await asyncio.wait_for(running, 5) is False
    assert reader.blocks == [ONE, TWO]


async def test_what_is_whole_is_handed_on_whatever_the_time(
    replica: Replica, engine: HttpEngine, watch: Watch, clock: FakeClock
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), chunk(TWO) + LAST_CHUNK, Do.UNTIL_CLOSED)
    reader = Reader()
    async with engine.open(a_call(stream=True, expires_at=clock() + 3)) as exchange:
        await turns(50)
        clock.advance(10)
        assert await flow(exchange, reader.pass_on) is False
    assert b"".join(reader.blocks) == ONE + TWO
