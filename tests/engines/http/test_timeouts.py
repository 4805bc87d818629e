"""Every phase of an exchange has its limit, by the watch's clock and no other."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager

import pytest

from app.engines.http import HttpEngine, Limits, Timeouts
from app.errors import (
    DeadlinePassed,
    EngineBusy,
    EngineConnectTimeout,
    EngineSilent,
    EngineStalled,
    GatewayError,
)
from app.reliability.watch import Watch
from tests.engines.http.replica import (
    CHUNKED,
    JSON,
    LAST_CHUNK,
    SSE,
    Do,
    Replica,
    a_call,
    an_event,
    answer_of,
    chunk,
    failure_of,
    sized,
    turns,
)
from tests.support.clock import FakeClock
from tests.support.until import until

ONE, TWO = an_event("one"), an_event("two")


class Time:
    """The clock and the watch together: time passes, and the watch looks."""

    def __init__(self, clock: FakeClock, watch: Watch) -> None:
        self._clock = clock
        self._watch = watch

    async def passes(self, seconds: float) -> None:
        """Once what is on the way has arrived."""
        await turns(30)
        self._clock.advance(seconds)
        self._watch.sweep()
        await turns(30)


@pytest.fixture
def time(clock: FakeClock, watch: Watch) -> Time:
    return Time(clock, watch)


class Running:
    """An exchange in a task of its own, so that the test can let time pass meanwhile."""

    def __init__(self, engine: HttpEngine, *, stream: bool, expires_at: float = 1_000.0) -> None:
        self._call = a_call(stream=stream, expires_at=expires_at)
        self._engine = engine
        self.blocks: list[bytes] = []
        self.error: GatewayError | None = None
        self.ended = False

    async def run(self) -> None:
        try:
            async with self._engine.open(self._call) as exchange:
                async for block in exchange:
                    self.blocks.append(block)
        except GatewayError as error:
            self.error = error
        self.ended = True


@asynccontextmanager
async def tasks(*running: Running) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        for each in running:
            group.create_task(each.run())
        yield


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a listener whose queue is full: it takes no connection and refuses none."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


# --- connecting ---------------------------------------------------------------------------------------------------


async def test_an_engine_that_takes_no_connection_is_given_up(
    nothing_left: None, deaf: int, watch: Watch, timeouts: Timeouts, time: Time
) -> None:
    engine = HttpEngine(f"http://127.0.0.1:{deaf}", watch=watch, timeouts=timeouts)
    running = Running(engine, stream=True)
    async with tasks(running):
        await time.passes(timeouts.connect_s - 0.1)
        assert not running.ended
        await time.passes(0.1)
    assert type(running.error) is EngineConnectTimeout
    await engine.aclose()


async def test_the_deadline_counts_while_connecting_too(
    nothing_left: None, deaf: int, watch: Watch, timeouts: Timeouts, time: Time
) -> None:
    engine = HttpEngine(f"http://127.0.0.1:{deaf}", watch=watch, timeouts=timeouts)
    running = Running(engine, stream=True, expires_at=watch.clock() + timeouts.connect_s / 2)
    async with tasks(running):
        await time.passes(timeouts.connect_s / 2)
    assert type(running.error) is DeadlinePassed
    await engine.aclose()


# --- the first byte -----------------------------------------------------------------------------------------------

SILENCES = {
    "nothing": (),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-",),
    "an interim answer": (b"HTTP/1.1 102 Processing\r\n\r\n",),
    "a head": (SSE + CHUNKED,),
    "half a chunk's head": (SSE + CHUNKED, b"1"),
}


@pytest.mark.parametrize("said", SILENCES.values(), ids=SILENCES)
async def test_an_engine_that_does_not_begin_is_silent(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time, said: tuple[bytes, ...]
) -> None:
    replica.plays(Do.REQUEST, *said, Do.UNTIL_CLOSED)
    running = Running(engine, stream=True)
    async with tasks(running):
        await until(lambda: len(replica.requests) == 1)
        await time.passes(timeouts.first_byte_s - 0.1)
        assert not running.ended
        await time.passes(0.1)
    assert type(running.error) is EngineSilent
    assert engine.open_connections == 0


async def test_what_is_not_body_does_not_extend_the_time_to_the_first_byte(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time
) -> None:
    replica.plays(Do.REQUEST, Do.PAUSE, SSE, Do.PAUSE, b"a: b\r\n", Do.PAUSE, CHUNKED, Do.UNTIL_CLOSED)
    running = Running(engine, stream=True)
    async with tasks(running):
        for _ in range(3):
            await time.passes(timeouts.first_byte_s * 0.3)
            replica.go_on()
        assert not running.ended
        await time.passes(timeouts.first_byte_s * 0.1)
    assert type(running.error) is EngineSilent


async def test_silence_on_a_reused_connection_is_not_a_stale_one(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time
) -> None:
    replica.plays(Do.REQUEST, sized(b"{}"), Do.REQUEST, Do.UNTIL_CLOSED)
    await answer_of(engine, a_call())
    running = Running(engine, stream=False)
    async with tasks(running):
        await time.passes(timeouts.first_byte_s)
    assert type(running.error) is EngineSilent
    assert len(replica.requests) == 2


async def test_a_whole_answer_may_be_given_more_time_than_a_stream(
    replica: Replica, watch: Watch, limits: Limits, time: Time
) -> None:
    replica.plays(Do.REQUEST, Do.UNTIL_CLOSED)
    patient = Timeouts(connect_s=1, first_byte_s=10, idle_s=5, whole_s=100)
    engine = HttpEngine(f"http://127.0.0.1:{replica.port}", watch=watch, timeouts=patient, limits=limits)
    stream, whole = Running(engine, stream=True), Running(engine, stream=False)
    async with tasks(stream, whole):
        await time.passes(99)
        assert (type(stream.error), whole.error) == (EngineSilent, None)
        await time.passes(1)
    assert type(whole.error) is EngineSilent
    await engine.aclose()


# --- between reads ------------------------------------------------------------------------------------------------


async def test_a_stream_that_pauses_for_too_long_has_stalled(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.PAUSE, chunk(TWO), Do.UNTIL_CLOSED)
    running = Running(engine, stream=True)
    async with tasks(running):
        await time.passes(timeouts.idle_s - 0.1)
        replica.go_on()
        await time.passes(0.1)
        await time.passes(timeouts.idle_s - 0.2)
        assert (running.blocks, running.error) == ([ONE, TWO], None)
        await time.passes(0.2)
    assert type(running.error) is EngineStalled


async def test_a_part_of_an_event_is_a_sign_of_life(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time
) -> None:
    steps = [step for part in (ONE[:3], ONE[3:6], ONE[6:]) for step in (Do.PAUSE, chunk(part))]
    replica.plays(Do.REQUEST, SSE + CHUNKED, *steps, LAST_CHUNK, Do.UNTIL_CLOSED)
    running = Running(engine, stream=True)
    async with tasks(running):
        for _ in range(3):
            await time.passes(timeouts.idle_s * 0.9)
            replica.go_on()
    assert (running.blocks, running.error) == ([ONE], None)


async def test_a_whole_answer_that_stops_in_its_middle_has_stalled(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time
) -> None:
    replica.plays(Do.REQUEST, JSON + b"content-length: 10\r\n\r\n{", Do.UNTIL_CLOSED)
    running = Running(engine, stream=False)
    async with tasks(running):
        await time.passes(timeouts.idle_s)
    assert type(running.error) is EngineStalled


async def test_a_slow_reader_is_not_an_idle_engine(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.PAUSE, chunk(TWO) + LAST_CHUNK, Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True)) as exchange:
        await time.passes(timeouts.first_byte_s * 3)
        assert await anext(exchange) == ONE
        await time.passes(timeouts.idle_s * 3)
        replica.go_on()
        await time.passes(timeouts.idle_s * 3)
        assert await anext(exchange) == TWO
        await time.passes(timeouts.idle_s * 3)
        assert [block async for block in exchange] == []


async def test_the_engine_has_all_its_time_from_when_the_reader_is_back(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.PAUSE, chunk(TWO) + LAST_CHUNK, Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True)) as exchange:
        assert await anext(exchange) == ONE
        await time.passes(timeouts.idle_s * 3)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(anext(exchange))
            await time.passes(timeouts.idle_s * 0.9)
            replica.go_on()
        assert reading.result() == TWO


async def test_a_slow_reader_does_not_excuse_an_engine_that_does_not_begin(
    replica: Replica, engine: HttpEngine, timeouts: Timeouts, time: Time
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED, Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True)) as exchange, asyncio.TaskGroup() as group:
        await time.passes(timeouts.first_byte_s * 3)
        reading = group.create_task(failing(anext(exchange)))
        await time.passes(0)
        assert type(await reading) is EngineSilent


async def failing(read: Awaitable[bytes]) -> GatewayError:
    with pytest.raises(GatewayError) as failed:
        await read
    return failed.value


async def test_an_error_whose_body_stops_is_soon_taken_as_it_is(
    replica: Replica, engine: HttpEngine, time: Time
) -> None:
    head = b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 100\r\n\r\n"
    replica.plays(Do.REQUEST, head + b"wait", Do.UNTIL_CLOSED)
    running = Running(engine, stream=False)
    async with tasks(running):
        await time.passes(1)
    assert type(running.error) is EngineBusy
    assert running.error.retry_after == 7


# --- the deadline -------------------------------------------------------------------------------------------------

PHASES = {
    "before the head": (),
    "before the body": (JSON + b"content-length: 10\r\n\r\n",),
    "in the body": (JSON + b"content-length: 10\r\n\r\n{",),
    "in an error": (b"HTTP/1.1 500 Oh\r\ncontent-length: 10\r\n\r\n{",),
}


@pytest.mark.parametrize("said", PHASES.values(), ids=PHASES)
async def test_the_deadline_ends_a_call_in_every_phase(
    replica: Replica, engine: HttpEngine, watch: Watch, time: Time, said: tuple[bytes, ...]
) -> None:
    replica.plays(Do.REQUEST, *said, Do.UNTIL_CLOSED)
    running = Running(engine, stream=False, expires_at=watch.clock() + 0.9)
    async with tasks(running):
        await time.passes(0.8)
        assert not running.ended
        await time.passes(0.2)
    assert type(running.error) is DeadlinePassed
    assert engine.open_connections == 0


async def test_the_deadline_ends_a_call_whose_reader_is_slow(
    replica: Replica, engine: HttpEngine, watch: Watch, time: Time
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.PAUSE, chunk(TWO), Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True, expires_at=watch.clock() + 3)) as exchange:
        assert await anext(exchange) == ONE
        replica.go_on()
        await time.passes(3)
        assert replica.closed_by_client == 1
        with pytest.raises(DeadlinePassed):
            await anext(exchange)


async def test_a_stream_that_broke_off_unread_ends_with_the_deadline_all_the_same(
    replica: Replica, engine: HttpEngine, watch: Watch, time: Time
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.END)
    async with engine.open(a_call(stream=True, expires_at=watch.clock() + 3)) as exchange:
        await time.passes(3)
        with pytest.raises(DeadlinePassed):
            await anext(exchange)


async def test_an_answer_that_is_whole_before_the_deadline_may_be_read_after_it(
    replica: Replica, engine: HttpEngine, watch: Watch, time: Time
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE) + LAST_CHUNK, Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True, expires_at=watch.clock() + 3)) as exchange:
        await time.passes(3)
        assert [block async for block in exchange] == [ONE]
    assert engine.idle_connections == 1


async def test_a_call_that_has_expired_is_not_sent(replica: Replica, engine: HttpEngine, watch: Watch) -> None:
    replica.plays(Do.REQUEST, sized(b"{}"), Do.REQUEST, sized(b"{}"), Do.UNTIL_CLOSED)
    _, error = await failure_of(engine, a_call(expires_at=watch.clock()))
    assert type(error) is DeadlinePassed
    assert replica.accepted == 0
    await answer_of(engine, a_call())
    await failure_of(engine, a_call(expires_at=watch.clock()))
    await turns(20)
    assert len(replica.requests) == 1
