"""A call may be cancelled wherever it waits, and leaves nothing behind."""

import asyncio
import ssl

import pytest

from app.engines.http import HttpEngine, Timeouts
from app.errors import EngineError
from app.reliability.watch import Watch
from tests.engines.http.replica import (
    CHUNKED,
    JSON,
    LAST_CHUNK,
    SSE,
    Do,
    Drip,
    Replica,
    Script,
    a_call,
    an_event,
    answer_of,
    chunk,
    sized,
    turns,
)
from tests.support.clock import FakeClock
from tests.support.until import until

EVENTS = chunk(an_event("one")), chunk(an_event("two")), LAST_CHUNK

SCRIPTS: dict[str, tuple[bool, Script]] = {
    "whole": (False, [Do.REQUEST, JSON, b"content-length: 4\r\n\r\n", b"{  ", b"}", Do.UNTIL_CLOSED]),
    "stream": (True, [Do.REQUEST, SSE + CHUNKED, *EVENTS, Do.UNTIL_CLOSED]),
    "refused": (False, [Do.REQUEST, b"HTTP/1.1 500 Oh\r\n", b"content-length: 2\r\n\r\n", b"{", b"}", Do.UNTIL_CLOSED]),
    "garbage": (True, [Do.REQUEST, SSE + CHUNKED, EVENTS[0], b"garbage", Do.UNTIL_CLOSED]),
    "broken": (True, [Do.REQUEST, SSE + CHUNKED, EVENTS[0], Do.RESET]),
}


async def cancelled_after(steps: int, engine: HttpEngine, *, stream: bool) -> bool:
    """Whether there was still something to cancel after so many turns of the loop."""
    task = asyncio.get_running_loop().create_task(answer_of(engine, a_call(stream=stream)))
    await turns(steps)
    in_time = task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(outcome, list | asyncio.CancelledError | EngineError)
    return in_time


@pytest.mark.parametrize(("stream", "script"), SCRIPTS.values(), ids=SCRIPTS)
async def test_a_call_cancelled_at_any_turn_of_the_loop_leaves_nothing(
    replica: Replica, engine: HttpEngine, watch: Watch, stream: bool, script: Script
) -> None:
    replica.scripts = [script]
    steps = 0
    while await cancelled_after(steps, engine, stream=stream):
        assert len(watch) == 0
        assert engine.open_connections == engine.idle_connections
        steps += 1
    assert steps > 8
    await engine.aclose()
    await until(lambda: replica.playing == 0)


async def test_a_call_cancelled_at_any_turn_of_a_handshake_leaves_nothing(
    nothing_left: None,
    watch: Watch,
    timeouts: Timeouts,
    server_tls: ssl.SSLContext,
    trusted: None,
) -> None:
    replica = Replica([[Do.REQUEST, Drip(sized(b"{}")), Do.UNTIL_CLOSED]])
    async with replica.listening(tls=server_tls):
        engine = HttpEngine(f"https://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts)
        steps = 0
        while await cancelled_after(steps, engine, stream=False):
            assert len(watch) == 0
            assert engine.open_connections == engine.idle_connections
            steps += 1
        assert steps > 8
        await engine.aclose()
        assert engine.open_connections == 0


async def test_a_reader_may_give_up_one_read_and_come_back(
    replica: Replica, engine: HttpEngine, watch: Watch, clock: FakeClock
) -> None:
    one, two = an_event("one"), an_event("two")
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(one), Do.PAUSE, chunk(two) + LAST_CHUNK, Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True)) as exchange:
        assert await anext(exchange) == one
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(exchange)
        clock.advance(60)
        watch.sweep()
        replica.go_on()
        await turns(20)
        assert [block async for block in exchange] == [two]


async def test_a_cancelled_call_stays_cancelled_when_its_time_is_up_as_well(
    replica: Replica, engine: HttpEngine, watch: Watch
) -> None:
    replica.plays(Do.REQUEST, sized(b"{}"), Do.UNTIL_CLOSED)
    task = asyncio.get_running_loop().create_task(answer_of(engine, a_call()))
    await turns(1)
    assert len(watch) == 1
    for wait in list(watch._waits):
        wait.expire(watch.clock() + 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
