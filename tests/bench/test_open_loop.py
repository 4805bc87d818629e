"""The load generator: it keeps its times whatever the server does, and says so when it did not."""

import asyncio
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest

from bench.client import End
from bench.open_loop import HangUp, Shot, chat, fire, lateness, poisson

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
REQUEST = chat(2, 2, stream=True)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ROLE = chunk(b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n')
TOKEN = chunk(b'data: {"choices":[{"delta":{"content":" word"}}]}\n\n')
LAST = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[int]:
    async with await asyncio.start_server(handler, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


def answering(*parts: bytes | asyncio.Event, closes: bool = False) -> Handler:
    """Each request gets these bytes, and waits at each event."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await reader.readuntil(b"}")
                await reader.readuntil(b"}")
                for part in parts:
                    if isinstance(part, bytes):
                        writer.write(part)
                    else:
                        await part.wait()
                if closes:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    return handle


async def test_a_stream_is_read_to_its_end_and_the_connection_kept() -> None:
    async with server(answering(HEAD, ROLE, TOKEN, TOKEN, LAST)) as port:
        shots = [Shot(at, REQUEST, keeps_body=True) for at in (0.0, 0.02)]
        await fire(port, shots, patience_s=5, connections=1)
    for shot in shots:
        assert shot.seen.end is End.DONE
        assert shot.seen.first_token_s is not None
        assert shot.seen.body.count(b"data: ") == 4


async def test_the_time_of_the_first_token_is_not_that_of_an_empty_event() -> None:
    never = asyncio.Event()
    async with server(answering(HEAD, ROLE, never)) as port:
        (shot,) = shots = [Shot(0, REQUEST)]
        await fire(port, shots, patience_s=0.2)
    assert (shot.seen.status, shot.seen.first_token_s, shot.seen.end) == (200, None, End.UNANSWERED)


async def test_a_server_that_answers_nobody_still_gets_every_request_at_its_time() -> None:
    never = asyncio.Event()
    shots = [Shot(number / 200, REQUEST) for number in range(40)]
    async with server(answering(never)) as port:
        late = await fire(port, shots, patience_s=0.1)
    assert {shot.seen.end for shot in shots} == {End.UNANSWERED}
    assert late.p50_s < 0.05


async def test_a_stream_that_breaks_off_is_not_done() -> None:
    async with server(answering(HEAD, ROLE, TOKEN, closes=True)) as port:
        (shot,) = shots = [Shot(0, REQUEST)]
        await fire(port, shots, patience_s=5)
    assert shot.seen.end is End.BROKEN


async def test_a_stream_that_ends_without_done_is_not_done() -> None:
    async with server(answering(HEAD, ROLE, TOKEN, b"0\r\n\r\n")) as port:
        (shot,) = shots = [Shot(0, REQUEST)]
        await fire(port, shots, patience_s=5)
    assert shot.seen.end is End.BROKEN


async def test_a_refusal_is_told_with_its_reason() -> None:
    refusal = b"HTTP/1.1 503 Busy\r\nx-gllm-reason: queue_full\r\ncontent-length: 2\r\n\r\n{}"
    async with server(answering(refusal)) as port:
        (shot,) = shots = [Shot(0, REQUEST)]
        await fire(port, shots, patience_s=5)
    assert (shot.seen.end, shot.seen.status) == (End.REFUSED, 503)
    assert shot.seen.headers == {"x-gllm-reason": "queue_full"}


@pytest.mark.parametrize("reset", [True, False])
async def test_who_hangs_up_is_gone_at_its_moment(reset: bool) -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + TOKEN)
        try:
            await reader.read(-1)
        except ConnectionResetError:
            assert reset
        gone.set()
        writer.close()

    async with server(handle) as port:
        (shot,) = shots = [Shot(0, REQUEST, hang_up=HangUp(0.05, reset))]
        await fire(port, shots, patience_s=5)
        await asyncio.wait_for(gone.wait(), 5)
    assert shot.seen.end is End.HUNG_UP


async def test_nobody_listens() -> None:
    (shot,) = shots = [Shot(0, REQUEST)]
    await fire(1, shots, patience_s=5)
    assert shot.seen.end is End.BROKEN


def test_a_generator_that_was_late_says_so() -> None:
    shots = [Shot(0, REQUEST) for _ in range(100)]
    assert not lateness(shots).is_too_much()
    for shot in shots[:2]:
        shot.seen.late_s = 0.006
    assert lateness(shots).is_too_much()


def test_arrivals_are_those_of_a_poisson_process_and_the_same_for_the_same_seed() -> None:
    times = list(poisson(random.Random(1), 1_000, 20))
    assert times == list(poisson(random.Random(1), 1_000, 20))
    assert len(times) == pytest.approx(20_000, rel=0.03)
    gaps = [after - before for before, after in pairwise(times)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)
