"""Streams: whole however often they break, and ended when they are left."""

import asyncio
import gc
import time
from typing import Any

import pytest

from gllm.client import GLLM, AsyncGLLM, BrokenAnswer, ChatChunk, Conflict, RemoteError, Retries, StreamBroken, TimedOut
from gllm.client.events import EventReader
from tests.client.conftest import HELLO, Either, Make
from tests.client.scripted import TEXT, Asked, Drops, Says, Scripted, Silent, Streams, Whole, error, events

ALL = events()
FAILURE = b"data: " + error("engine_interrupted") + b"\n\n"


def from_where_it_was(asked: Asked) -> Streams:
    """As the gateway does it."""
    return Streams(ALL[int(asked.headers["last-event-id"] or 0) :])


async def test_pieces_come_as_text_as_chunks_and_as_they_are(client: Either, server: Scripted) -> None:
    server.otherwise = from_where_it_was
    assert await client.pieces() == TEXT
    chunks = await client.pieces(return_mode="openai")
    assert all(isinstance(chunk, ChatChunk) for chunk in chunks)
    assert [chunk.choices[0].delta.content for chunk in chunks] == TEXT
    raw = await client.pieces(return_mode="raw", n=2)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in raw] == TEXT
    assert [asked.body["stream"] for asked in server.posts] == [True] * 3
    assert server.given_up == []


async def test_completions_stream_too(client: Either, server: Scripted) -> None:
    chunk = b'data: {"choices": [{"text": "Hi", "index": 0}]}\n\n'
    server.otherwise = lambda asked: Streams([chunk, chunk, b"data: [DONE]\n\n"])
    stream: Any = client.client.stream_completions("demo", "Once", max_tokens=5)
    pieces = list(stream) if isinstance(client.client, GLLM) else [piece async for piece in stream]
    assert pieces == ["Hi", "Hi"]
    assert (server.posts[0].path, server.posts[0].body["max_tokens"]) == ("/v1/completions", 5)


@pytest.mark.parametrize("cut", range(len(ALL) + 1))
@pytest.mark.parametrize("torn", [0, 9])
async def test_a_stream_cut_after_any_event_goes_on_from_there(
    client: Either, server: Scripted, cut: int, torn: int
) -> None:
    whole, following = ALL[:cut], b"".join(ALL[cut:])
    server.says[:] = [Streams([*whole, following[:torn]] if torn and following else whole, breaks=True)]
    server.otherwise = from_where_it_was
    assert await client.pieces() == TEXT
    came_to_its_end = cut == len(ALL)
    assert [asked.headers["last-event-id"] for asked in server.posts] == [None, str(cut) if cut else None][
        : 1 if came_to_its_end else 2
    ]
    assert len({asked.headers["idempotency-key"] for asked in server.posts}) == 1


async def test_a_stream_that_breaks_at_every_event_is_whole_in_the_end(client: Either, server: Scripted) -> None:
    server.says[:] = [Streams([one], breaks=True) for one in ALL]
    assert await client.pieces() == TEXT
    assert len(server.posts) == len(ALL)


async def test_a_stream_that_ends_early_without_a_break_is_resumed_too(client: Either, server: Scripted) -> None:
    server.says[:] = [Streams(ALL[:2]), Drops(), Whole(503, error("draining"), {"retry-after": "2"})]
    server.otherwise = from_where_it_was
    assert await client.pieces() == TEXT
    assert client.pauses == [0.0, 0.0, 2.0]


async def test_events_that_come_again_are_not_given_again(client: Either, server: Scripted) -> None:
    server.says[:] = [Streams(ALL[:3], breaks=True), Streams(ALL)]
    assert await client.pieces() == TEXT


async def test_a_gap_is_an_error(client: Either, server: Scripted) -> None:
    server.says[:] = [Streams(ALL[:1], breaks=True), Streams(ALL[2:])]
    with pytest.raises(BrokenAnswer, match="event 3 after 1"):
        await client.pieces()


async def test_blocks_may_be_cut_anywhere(client: Either, server: Scripted) -> None:
    stream = b": a comment\r\n\r\n" + b"".join(ALL).replace(b"\n", b"\r\n")
    server.otherwise = lambda asked: Streams([stream[at : at + 1] for at in range(len(stream))])
    assert await client.pieces() == TEXT


def test_an_event_of_several_lines_is_one() -> None:
    (event,) = EventReader().feed(b"event: x\nid: 7\ndata: one\ndata:two\n\n")
    assert (event.number, event.data) == (7, b"one\ntwo")


# --- streams that fail --------------------------------------------------------------------------------------------


async def test_a_stream_that_ends_with_an_error_raises_it_after_what_came_before(
    client: Either, server: Scripted
) -> None:
    server.says[:] = [Streams([b"".join(ALL[:2]) + FAILURE])]
    found: list[str] = []
    with pytest.raises(RemoteError) as raised:
        await client.pieces(into=found)
    assert found == TEXT[:2]
    assert (raised.value.code, raised.value.message, raised.value.request_id) == (
        "engine_interrupted",
        "It is engine_interrupted.",
        "req-1",
    )
    assert len(server.asked) == 1


async def test_a_text_about_errors_is_no_error(client: Either, server: Scripted) -> None:
    text = ['{"error": ', '"error"', "}"]
    server.otherwise = lambda asked: Streams(events(text))
    assert await client.pieces() == text


async def test_a_deadline_in_the_middle_is_a_timeout(client: Either, server: Scripted) -> None:
    server.says[:] = [Streams([ALL[0], FAILURE.replace(b"engine_interrupted", b"deadline_exceeded")])]
    with pytest.raises(TimedOut):
        await client.pieces(timeout_s=5)


async def test_a_refusal_is_raised_as_of_any_call(client: Either, server: Scripted) -> None:
    server.says[:] = [Whole(400, error("invalid_value"))]
    with pytest.raises(RemoteError) as raised:
        await client.pieces()
    assert (raised.value.status, raised.value.code, len(server.asked)) == (400, "invalid_value", 1)


async def test_a_rest_that_nobody_has_is_an_error(client: Either, server: Scripted) -> None:
    gone = Whole(409, error("nothing_to_resume", "idempotency_error"), {"x-should-retry": "false"})
    server.says[:] = [Streams(ALL[:2], breaks=True), gone]
    with pytest.raises(Conflict) as raised:
        await client.pieces()
    assert (raised.value.code, len(server.asked)) == ("nothing_to_resume", 2)


@pytest.mark.parametrize("breaks", [True, False])
async def test_a_stream_without_numbers_is_not_begun_again_in_the_middle(
    client: Either, server: Scripted, breaks: bool
) -> None:
    """Another server's: to begin anew would double what was given."""
    unnumbered = events(numbered=False)
    server.says[:] = [Drops(), Streams(unnumbered[:2], breaks=breaks)]
    with pytest.raises(RemoteError):
        await client.pieces()
    assert len(server.asked) == 2
    server.says[:] = [Streams(unnumbered)]
    assert await client.pieces() == TEXT


async def test_a_stream_that_never_ends_well_is_given_up_in_the_end(make: Make, server: Scripted) -> None:
    server.otherwise = lambda asked: Streams([], breaks=False)
    with pytest.raises(StreamBroken):
        await make(Retries(most=2, first_pause_s=0)).pieces()
    assert len(server.asked) == 3


async def test_what_is_no_stream_is_a_broken_answer(make: Make, server: Scripted) -> None:
    with pytest.raises(BrokenAnswer):
        await make(Retries(most=1, first_pause_s=0)).pieces()
    assert len(server.asked) == 2


async def test_a_stream_that_falls_silent_is_left_when_the_time_is_over(client: Either, server: Scripted) -> None:
    server.says[:] = [Streams(ALL[:2], breaks=True), Silent()]
    began = time.monotonic()
    with pytest.raises(TimedOut):
        await client.pieces(timeout_s=0.3)
    assert time.monotonic() - began < 2
    assert server.posts[1].headers["last-event-id"] == "2"


# --- left early ---------------------------------------------------------------------------------------------------


async def test_who_leaves_early_tells_the_server(client: Either, server: Scripted) -> None:
    server.says[:] = [Streams(ALL[:2])]
    assert await client.some_pieces(1) == TEXT[:1]
    assert server.given_up == [server.posts[-1].headers["idempotency-key"]]


async def test_who_never_begins_asks_nothing(client: Either, server: Scripted) -> None:
    stream: Any = client.client.stream_chat_completion("demo", HELLO)
    if isinstance(client.client, GLLM):
        with stream:
            pass
        stream.close()
    else:
        async with stream:
            pass
        await stream.aclose()
    assert server.asked == []


async def until_given_up(server: Scripted) -> None:
    for _ in range(500):
        if server.given_up:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the server was not told")


async def test_a_loop_that_is_broken_out_of_tells_the_server_too(client: Either, server: Scripted) -> None:
    server.says[:] = [Streams(ALL[:2], breaks=False)]
    if isinstance(client.client, GLLM):
        for _ in client.client.stream_chat_completion("demo", HELLO):
            break
    else:
        async for _ in client.client.stream_chat_completion("demo", HELLO):
            break
    gc.collect()
    await until_given_up(server)
    assert server.given_up == [server.posts[0].headers["idempotency-key"]]


async def test_a_cancelled_reader_tells_the_server(server: Scripted) -> None:
    server.says[:] = [Streams(ALL[:1], breaks=True), Silent()]
    client = AsyncGLLM(server.url, retries=Retries(first_pause_s=0))
    async with client:

        async def read() -> None:
            async for _ in client.stream_chat_completion("demo", HELLO):
                pass

        task = asyncio.create_task(read())
        while len(server.posts) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert server.given_up == [server.posts[0].headers["idempotency-key"]]


async def test_a_stream_that_is_over_is_over(client: Either, server: Scripted) -> None:
    said: list[Says] = [Streams(ALL)]
    server.says[:] = said
    stream: Any = client.client.stream_chat_completion("demo", HELLO)
    if isinstance(client.client, GLLM):
        assert list(stream) == TEXT
        assert list(stream) == []
    else:
        assert [piece async for piece in stream] == TEXT
        assert [piece async for piece in stream] == []
    assert len(server.asked) == 1
