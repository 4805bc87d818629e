"""What an engine may send, and what the gateway makes of it."""

import pytest

from app.engines.http import HttpEngine, Limits
from app.errors import EngineBroken, EngineError, EngineLost, EngineNonsense
from tests.engines.http.replica import (
    CHUNKED,
    JSON,
    LAST_CHUNK,
    OK,
    SSE,
    Do,
    Drip,
    Replica,
    a_call,
    an_event,
    answer_of,
    chunk,
    failure_of,
    sized,
    stream,
)

ONE, TWO, THREE = an_event("one"), an_event("two"), an_event("three")


# --- whole answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        sized(b'{"a":1}'),
        JSON + CHUNKED + chunk(b'{"a"') + chunk(b":1}") + LAST_CHUNK,
        JSON + CHUNKED + b'7;extension="x"\r\n{"a":1}\r\n0\r\ntrailer: y\r\n\r\n',
        sized(b'{"a":1}', head=OK + b"Content-Type: Application/Problem+JSON; charset=utf-8\r\n"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + sized(b'{"a":1}'),
        sized(b'{"a":1}', head=JSON + b"content-encoding: identity\r\n"),
    ],
    ids=["sized", "chunked", "extensions-and-trailers", "content-type", "interim-answers", "identity"],
)
async def test_a_whole_answer_is_one_block(replica: Replica, engine: HttpEngine, answer: bytes) -> None:
    replica.plays(Do.REQUEST, answer, Do.UNTIL_CLOSED)
    assert await answer_of(engine, a_call()) == [b'{"a":1}']
    assert (engine.open_connections, engine.idle_connections) == (1, 1)


@pytest.mark.parametrize("head", [JSON, JSON.replace(b"1.1", b"1.0")])
async def test_an_answer_without_a_length_ends_with_its_connection(
    replica: Replica, engine: HttpEngine, head: bytes
) -> None:
    replica.plays(Do.REQUEST, head + b"\r\n" + b'{"a":', b"1}", Do.END, Do.UNTIL_CLOSED)
    assert await answer_of(engine, a_call()) == [b'{"a":1}']
    assert engine.open_connections == 0


async def test_a_whole_answer_that_is_empty_is_an_empty_block(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, sized(b""))
    assert await answer_of(engine, a_call()) == [b""]


async def test_a_whole_answer_in_single_bytes_is_still_one_block(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, Drip(sized(b'{"a":1}')))
    assert await answer_of(engine, a_call()) == [b'{"a":1}']


async def test_a_whole_answer_larger_than_the_limit_is_nonsense(
    replica: Replica, engine: HttpEngine, limits: Limits
) -> None:
    replica.plays(Do.REQUEST, JSON + CHUNKED + chunk(b" " * (limits.max_answer_bytes + 1)), Do.UNTIL_CLOSED)
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineNonsense
    assert "larger" in error.message


# --- streams ------------------------------------------------------------------------------------------------------


async def test_events_that_arrive_together_are_one_block(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, stream(ONE, TWO, THREE))
    assert await answer_of(engine, a_call(stream=True)) == [ONE + TWO + THREE]
    assert engine.idle_connections == 1


async def test_an_event_is_given_out_as_soon_as_it_is_whole(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE + TWO[:4]), Do.PAUSE, chunk(TWO[4:]), LAST_CHUNK)
    async with engine.open(a_call(stream=True)) as exchange:
        assert await anext(exchange) == ONE
        replica.go_on()
        assert await anext(exchange) == TWO
        assert [block async for block in exchange] == []


async def test_a_stream_cut_at_any_byte_is_the_same_stream(replica: Replica, engine: HttpEngine) -> None:
    answer = stream(ONE, TWO[:3], TWO[3:] + b": a comment\r\n\r\n", THREE)
    replica.scripts = [
        [step for cut in range(1, len(answer)) for step in (Do.REQUEST, answer[:cut], answer[cut:])],
    ]
    for cut in range(1, len(answer)):
        blocks = await answer_of(engine, a_call(stream=True))
        assert b"".join(blocks) == ONE + TWO + b": a comment\r\n\r\n" + THREE, f"cut at {cut}"
        assert all(block.endswith((b"\n\n", b"\r\n\r\n")) for block in blocks), f"cut at {cut}"
    assert replica.accepted == 1


async def test_a_stream_in_single_bytes_is_the_same_stream(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, Drip(stream(ONE, TWO, THREE)))
    assert await answer_of(engine, a_call(stream=True)) == [ONE, TWO, THREE]


async def test_a_stream_without_a_length_ends_with_its_connection(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + b"\r\n" + ONE, TWO, Do.END)
    assert b"".join(await answer_of(engine, a_call(stream=True))) == ONE + TWO


async def test_an_event_larger_than_the_limit_is_nonsense(replica: Replica, engine: HttpEngine, limits: Limits) -> None:
    too_long = chunk(b"data: " + b"x" * limits.max_event_bytes)
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), too_long, Do.UNTIL_CLOSED)
    blocks, error = await failure_of(engine, a_call(stream=True))
    assert (blocks, type(error)) == ([ONE], EngineNonsense)


# --- streams that break off ---------------------------------------------------------------------------------------

BREAKS = {
    "inside a chunk": (b"20\r\n" + TWO[:5], Do.END),
    "between chunks": (Do.END,),
    "by a reset": (Do.PAUSE, Do.RESET),
}


@pytest.mark.parametrize("rest", BREAKS.values(), ids=BREAKS)
async def test_a_stream_that_breaks_off_after_a_block_is_broken(
    replica: Replica, engine: HttpEngine, rest: tuple[bytes | Do, ...]
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE), *rest)
    async with engine.open(a_call(stream=True)) as exchange:
        assert await anext(exchange) == ONE
        replica.go_on()
        with pytest.raises(EngineBroken):
            await anext(exchange)
    assert engine.open_connections == 0


@pytest.mark.parametrize("rest", BREAKS.values(), ids=BREAKS)
async def test_a_stream_that_breaks_off_before_its_first_block_has_failed(
    replica: Replica, engine: HttpEngine, rest: tuple[bytes | Do, ...]
) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE[:-1]), *rest)
    async with engine.open(a_call(stream=True)) as exchange:
        replica.go_on()
        with pytest.raises(EngineLost):
            await anext(exchange)


async def test_a_body_without_a_length_does_not_end_with_a_reset(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + b"\r\n" + ONE, Do.PAUSE, Do.RESET)
    async with engine.open(a_call(stream=True)) as exchange:
        assert await anext(exchange) == ONE
        replica.go_on()
        with pytest.raises(EngineBroken):
            await anext(exchange)


async def test_a_stream_that_ends_inside_an_event_is_broken(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, stream(ONE, TWO[:-1]))
    blocks, error = await failure_of(engine, a_call(stream=True))
    assert (b"".join(blocks), type(error)) == (ONE, EngineBroken)


async def test_what_came_before_the_end_is_given_out_first(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, SSE + CHUNKED + chunk(ONE) + chunk(TWO), Do.END)
    blocks, error = await failure_of(engine, a_call(stream=True))
    assert (b"".join(blocks), type(error)) == (ONE + TWO, EngineBroken)


# --- no answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        (Do.END,),
        (Do.RESET,),
        (b"HTTP/1.1 20", Do.END),
        (b"HTTP/1.1 100 Continue\r\n\r\n", Do.END),
        (JSON + b"content-length: 10\r\n\r\n{}", Do.END),
        (JSON + CHUNKED + chunk(b"{}"), Do.END),
        (JSON + b"content-length: 10\r\n\r\n{}", Do.PAUSE),
    ],
    ids=["nothing", "reset", "half a status", "only an interim", "short", "no last chunk", "reset in the body"],
)
async def test_an_answer_that_breaks_off_has_failed(
    replica: Replica, engine: HttpEngine, answer: tuple[bytes | Do, ...]
) -> None:
    replica.plays(Do.REQUEST, *answer, Do.RESET)
    replica.go_on()
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineLost
    assert engine.open_connections == 0


# --- nonsense -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x16\x03\x01\x00\x00",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        JSON + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        JSON + b"content-length: 2\r\n" + CHUNKED + chunk(b"{}") + LAST_CHUNK,
        JSON + b"content-length: -2\r\n\r\n{}",
        JSON + b"content-length : 2\r\n\r\n{}",
        JSON + b"folded: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
        JSON + b"nul: \x00\r\ncontent-length: 2\r\n\r\n{}",
        JSON + b"transfer-encoding: gzip, chunked\r\n\r\n" + chunk(b"{}") + LAST_CHUNK,
        JSON + CHUNKED + b"zz\r\n{}\r\n",
        JSON + CHUNKED + b"1\r\n{}\r\n",
        JSON + CHUNKED + b"fffffffffffffffff\r\n{}\r\n",
        sized(b"\x1f\x8b\x08", head=JSON + b"content-encoding: gzip\r\n"),
        sized(b"<html>", head=OK + b"content-type: text/html\r\n"),
        sized(b"{}", head=OK),
        b"HTTP/1.1 103 Early Hints\r\ncontent-type: application/json\r\n\r\n" + sized(b"{}", head=OK),
        stream(ONE),
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_what_is_not_the_wire_format_is_nonsense(replica: Replica, engine: HttpEngine, answer: bytes) -> None:
    replica.plays(Do.REQUEST, answer, Do.UNTIL_CLOSED)
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineNonsense


async def test_json_instead_of_a_stream_is_nonsense(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, sized(b'{"error":"all is lost"}'), Do.UNTIL_CLOSED)
    _, error = await failure_of(engine, a_call(stream=True))
    assert type(error) is EngineNonsense
    assert isinstance(error, EngineError)
    assert "application/json" in (error.detail or "")


HUGE = b"x" * 1024 * 1024


@pytest.mark.parametrize(
    "answer",
    [
        JSON + b"huge: " + HUGE + b"\r\n",
        JSON + b"a: b\r\n" * 100_000,
        b"HTTP/1.1 200 " + HUGE,
        b"HTTP/1.1 102 Processing\r\n\r\n" * 40_000,
        JSON + CHUNKED + chunk(b"{}") + b"0\r\n" + b"trailer: y\r\n" * 100_000,
        JSON + CHUNKED + b"2;" + HUGE,
    ],
    ids=["one header", "many headers", "a reason", "interim answers", "trailers", "a chunk extension"],
)
async def test_headers_without_end_are_nonsense(replica: Replica, engine: HttpEngine, answer: bytes) -> None:
    replica.plays(Do.REQUEST, answer, Do.UNTIL_CLOSED)
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineNonsense
    assert "headers" in error.message
