"""Which connection carries a request, and what becomes of it afterwards."""

import asyncio
import gc
import socket
from dataclasses import replace

import pytest

from app.engines.http import HttpEngine, Limits, Timeouts
from app.engines.http.connection import Connection
from app.engines.http.exchange import HttpExchange
from app.errors import EngineBroken, EngineLost, EngineOutOfReach, EngineRefused, EngineUnreachable
from app.reliability.watch import Watch
from tests.engines.http.replica import (
    CHUNKED,
    JSON,
    SSE,
    Do,
    Replica,
    Script,
    a_call,
    an_event,
    answer_of,
    chunk,
    failure_of,
    sized,
    stream,
    turns,
)
from tests.support.clock import FakeClock
from tests.support.scarce import no_more_files
from tests.support.until import until

ANSWER = sized(b"{}")
ONE = an_event("one")


# --- reuse --------------------------------------------------------------------------------------------------------


async def test_the_next_request_takes_the_connection_of_the_last(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.REQUEST, stream(ONE), Do.REQUEST, ANSWER, Do.UNTIL_CLOSED)
    assert await answer_of(engine, a_call()) == [b"{}"]
    assert await answer_of(engine, a_call(stream=True)) == [ONE]
    assert await answer_of(engine, a_call()) == [b"{}"]
    assert (replica.accepted, engine.open_connections) == (1, 1)


async def test_the_connection_used_last_is_taken_first(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.REQUEST, ANSWER, Do.UNTIL_CLOSED)
    async with engine.open(a_call()) as first, engine.open(a_call()) as second:
        assert await anext(first) == await anext(second) == b"{}"
    assert engine.idle_connections == 2
    port = _local_port(engine)
    async with engine.open(a_call()) as exchange:
        assert await anext(exchange) == b"{}"
        assert _local_port_of(exchange) == port


async def test_requests_at_the_same_time_have_a_connection_each(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.UNTIL_CLOSED)
    async with engine.open(a_call()), engine.open(a_call()):
        assert (engine.open_connections, engine.idle_connections) == (2, 0)
    assert (engine.open_connections, engine.idle_connections) == (2, 2)


@pytest.mark.parametrize(
    "answer",
    [
        sized(b"{}", head=JSON + b"connection: close\r\n"),
        sized(b"{}", head=JSON.replace(b"1.1", b"1.0")),
        ANSWER + b"x",
        ANSWER + ANSWER,
        ANSWER + b"HTTP/1.1 2",
    ],
    ids=["it says so", "HTTP/1.0", "a byte too many", "two answers", "one answer and a bit"],
)
async def test_a_connection_that_cannot_be_trusted_is_not_kept(
    replica: Replica, engine: HttpEngine, answer: bytes
) -> None:
    replica.plays(Do.REQUEST, answer, Do.UNTIL_CLOSED)
    assert await answer_of(engine, a_call()) == [b"{}"]
    assert engine.open_connections == 0


async def test_bytes_that_nobody_asked_for_end_an_idle_connection(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.PAUSE, b"\r\n", Do.UNTIL_CLOSED)
    await answer_of(engine, a_call())
    assert engine.idle_connections == 1
    replica.go_on()
    await until(lambda: engine.open_connections == 0)
    assert await answer_of(engine, a_call()) == [b"{}"]
    assert replica.accepted == 2


async def test_an_answer_that_comes_before_the_request_is_all_sent_is_read_but_its_connection_not_kept(
    replica: Replica, engine: HttpEngine
) -> None:
    refusal = sized(b'{"error":{}}', head=b"HTTP/1.1 413 Too Large\r\ncontent-type: application/json\r\n")
    replica.plays(Do.HEAD, refusal, Do.PAUSE)
    _, error = await failure_of(engine, a_call(body=b" " * 50_000_000))
    assert type(error) is EngineRefused
    assert engine.open_connections == 0


async def test_an_answer_may_end_with_its_connection_while_the_request_is_still_being_sent(
    replica: Replica, engine: HttpEngine
) -> None:
    replica.plays(Do.HEAD, b"HTTP/1.1 413 Too Large\r\n\r\n", Do.END, Do.PAUSE)
    _, error = await failure_of(engine, a_call(body=b" " * 50_000_000))
    assert type(error) is EngineRefused
    assert engine.open_connections == 0


async def test_a_refusal_does_not_cost_the_connection(replica: Replica, engine: HttpEngine) -> None:
    refusal = sized(b"{}", head=b"HTTP/1.1 400 Bad Request\r\n")
    replica.plays(Do.REQUEST, refusal, Do.REQUEST, ANSWER, Do.UNTIL_CLOSED)
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineRefused
    assert await answer_of(engine, a_call()) == [b"{}"]
    assert replica.accepted == 1


async def test_leaving_a_stream_that_is_all_here_keeps_the_connection(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, stream(ONE, ONE), Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True)):
        await until(lambda: engine.open_connections == 1)
        await turns(10)
    assert engine.idle_connections == 1


# --- stale connections --------------------------------------------------------------------------------------------


async def test_a_connection_closed_by_the_engine_while_idle_is_not_used_again(
    replica: Replica, engine: HttpEngine
) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.PAUSE)
    await answer_of(engine, a_call())
    replica.go_on()
    await until(lambda: engine.open_connections == 0)
    await answer_of(engine, a_call())
    assert (replica.accepted, len(replica.requests)) == (2, 2)


@pytest.mark.parametrize("ending", [Do.END, Do.RESET])
async def test_a_reused_connection_that_breaks_before_the_first_byte_costs_nothing(
    replica: Replica, engine: HttpEngine, ending: Do
) -> None:
    stale: Script = [Do.REQUEST, ANSWER, Do.REQUEST, ending]
    replica.scripts = [stale, [Do.REQUEST, ANSWER, Do.UNTIL_CLOSED]]
    await answer_of(engine, a_call())
    assert await answer_of(engine, a_call()) == [b"{}"]
    assert (replica.accepted, len(replica.requests)) == (2, 3)
    assert replica.requests[1] == replica.requests[2]
    assert engine.open_connections == 1


async def test_it_is_sent_once_more_and_not_twice(replica: Replica, engine: HttpEngine) -> None:
    replica.scripts = [[Do.REQUEST, ANSWER, Do.REQUEST, Do.END], [Do.REQUEST, Do.END]]
    await answer_of(engine, a_call())
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineLost
    assert len(replica.requests) == 3


async def test_a_fresh_connection_that_breaks_is_a_failure(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, Do.END)
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineLost
    assert len(replica.requests) == 1


@pytest.mark.parametrize("byte", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", JSON + b"content-length: 9\r\n\r\n"])
async def test_a_reused_connection_that_breaks_after_the_first_byte_is_a_failure(
    replica: Replica, engine: HttpEngine, byte: bytes
) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.REQUEST, byte, Do.END)
    await answer_of(engine, a_call())
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineLost
    assert len(replica.requests) == 2


async def test_nonsense_on_a_reused_connection_is_not_sent_again(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.REQUEST, b"nonsense", Do.UNTIL_CLOSED)
    await answer_of(engine, a_call())
    await failure_of(engine, a_call())
    assert len(replica.requests) == 2


# --- the pool's limits --------------------------------------------------------------------------------------------


async def test_a_connection_idle_for_too_long_is_not_used_again(
    replica: Replica, engine: HttpEngine, clock: FakeClock, limits: Limits
) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.UNTIL_CLOSED)
    await answer_of(engine, a_call())
    clock.advance(limits.idle_keepalive_s)
    await answer_of(engine, a_call())
    assert replica.accepted == 2
    await until(lambda: engine.open_connections == 1)


async def test_connections_that_a_burst_has_left_are_closed_in_time(
    replica: Replica, engine: HttpEngine, clock: FakeClock, limits: Limits
) -> None:
    thrice: Script = [Do.REQUEST, ANSWER] * 3
    replica.plays(*thrice, Do.UNTIL_CLOSED)
    async with engine.open(a_call()), engine.open(a_call()), engine.open(a_call()):
        pass
    assert engine.idle_connections == 3
    clock.advance(limits.idle_keepalive_s / 2)
    await answer_of(engine, a_call())
    clock.advance(limits.idle_keepalive_s / 2)
    async with engine.open(a_call()):
        pass
    assert engine.idle_connections == 1
    await until(lambda: engine.open_connections == 1)


async def test_no_more_idle_connections_are_kept_than_allowed(
    replica: Replica, watch: Watch, timeouts: Timeouts, limits: Limits
) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.UNTIL_CLOSED)
    few = replace(limits, max_idle=1)
    engine = HttpEngine(f"http://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts, limits=few)
    async with engine.open(a_call()), engine.open(a_call()):
        pass
    assert engine.idle_connections == 1
    await until(lambda: engine.open_connections == 1)
    await engine.aclose()
    assert engine.open_connections == 0


async def test_closing_the_engine_ends_what_is_still_open(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True)) as exchange:
        assert await anext(exchange) == ONE
        await engine.aclose()
        with pytest.raises(EngineBroken):
            await anext(exchange)
    assert engine.open_connections == 0


async def test_a_closed_engine_keeps_no_connection(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.UNTIL_CLOSED)
    await engine.aclose()
    assert await answer_of(engine, a_call()) == [b"{}"]
    assert engine.open_connections == 0


# --- leaving ------------------------------------------------------------------------------------------------------


async def test_leaving_before_the_end_is_noticed_by_the_engine(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.UNTIL_CLOSED)
    async with engine.open(a_call(stream=True)) as exchange:
        assert await anext(exchange) == ONE
    assert engine.open_connections == 0
    await until(lambda: replica.closed_by_client == 1)


async def test_leaving_before_the_answer_is_noticed_by_the_engine(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, JSON + b"content-length: 10\r\n\r\n", Do.UNTIL_CLOSED)
    async with engine.open(a_call()):
        pass
    assert engine.open_connections == 0
    await until(lambda: replica.closed_by_client == 1)


async def test_an_error_in_the_block_passes_through_and_aborts(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.UNTIL_CLOSED)
    with pytest.raises(KeyError):
        async with engine.open(a_call(stream=True)):
            raise KeyError
    await until(lambda: replica.closed_by_client == 1)


async def test_a_connection_is_freed_when_it_is_lost(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), Do.UNTIL_CLOSED)
    gc.collect()
    gc.disable()
    try:
        async with engine.open(a_call(stream=True)) as exchange:
            assert await anext(exchange) == ONE
        await turns(2)
        assert not any(isinstance(found, Connection) for found in gc.get_objects())
    finally:
        gc.enable()


# --- reading no faster than the reader ----------------------------------------------------------------------------


async def test_a_slow_reader_slows_the_engine(
    replica: Replica, watch: Watch, timeouts: Timeouts, limits: Limits
) -> None:
    many = an_event("x" * 1_000) * 32
    replica.plays(Do.REQUEST, SSE + CHUNKED, *[chunk(many)] * 1_000, b"0\r\n\r\n", Do.UNTIL_CLOSED)
    engine = HttpEngine(f"http://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts, limits=limits)
    async with engine.open(a_call(stream=True)) as exchange:
        connection = exchange._connection
        assert connection is not None
        await until(lambda: connection.paused)
        await turns(100)
        assert connection.size <= 2 * limits.buffer_bytes
        assert sum([len(block) async for block in exchange]) == len(many) * 1_000
    assert engine.idle_connections == 1
    await engine.aclose()


# --- connecting ---------------------------------------------------------------------------------------------------


async def test_an_engine_that_refuses_connections_is_unreachable(
    nothing_left: None, watch: Watch, timeouts: Timeouts
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        engine = HttpEngine(f"http://127.0.0.1:{taken.getsockname()[1]}", watch=watch, timeouts=timeouts)
        _, error = await failure_of(engine, a_call())
        assert type(error) is EngineUnreachable
        await engine.aclose()


async def test_what_we_have_too_little_of_is_not_the_engines_fault(
    nothing_left: None, replica: Replica, engine: HttpEngine
) -> None:
    with no_more_files():
        _, error = await failure_of(engine, a_call())
    assert type(error) is EngineOutOfReach
    assert (error.blames_engine, error.retry_after) == (False, 1.0)
    replica.plays(Do.REQUEST, ANSWER)
    assert await answer_of(engine, a_call()) == [b"{}"]


async def test_an_engine_that_hangs_up_at_once_has_failed(replica: Replica, engine: HttpEngine) -> None:
    replica.plays()
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineLost
    assert engine.open_connections == 0


async def test_a_connection_lost_before_anything_was_sent_says_so_to_its_reader() -> None:
    class Closed(asyncio.Transport):
        def write(self, data: object) -> None:
            raise AssertionError("nothing is written to a closed transport")

    lost: list[Connection] = []
    connection = Connection(max_header_bytes=1_000, on_lost=lost.append)
    connection.connection_made(Closed())
    connection.connection_lost(None)
    connection.send(b"a request", pause_above=1_000)
    assert (type(connection.fault), lost) == (EngineLost, [connection])


async def test_an_engine_whose_name_is_not_known_is_unreachable(
    nothing_left: None, watch: Watch, timeouts: Timeouts
) -> None:
    engine = HttpEngine("http://no-such-engine.invalid", watch=watch, timeouts=timeouts)
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineUnreachable
    assert "no-such-engine" not in error.message
    await engine.aclose()


async def test_nothing_waits_in_the_kernel_for_more_to_send(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, ANSWER, Do.UNTIL_CLOSED)
    async with engine.open(a_call()) as exchange:
        assert _socket_of(exchange).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def _socket_of(exchange: HttpExchange) -> socket.socket:
    assert exchange._connection is not None
    found: socket.socket = exchange._connection._transport.get_extra_info("socket")
    return found


def _local_port_of(exchange: HttpExchange) -> int:
    port: int = _socket_of(exchange).getsockname()[1]
    return port


def _local_port(engine: HttpEngine) -> int:
    port: int = engine._pool._idle[-1]._transport.get_extra_info("sockname")[1]
    return port
