"""The load generator in C: it counts what a server really sent, believes no broken stream, and hides no stall."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench.cost.cores import of_this_machine
from bench.cost.load import Found, Load, fire, held, write_requests
from bench.open_loop import chat

pytestmark = pytest.mark.alone
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CORE = of_this_machine().load
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def token(number: int) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":" w%d"}}]}\n\n' % number


ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = HEAD + chunk(ROLE) + b"".join(chunk(token(number)) for number in range(3)) + chunk(DONE) + END


class Server:
    """Answers with what it was given, and counts."""

    def __init__(self, answer: Callable[[int], Awaitable[list[bytes]]]) -> None:
        self.requests = 0
        self._answer = answer

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                self.requests += 1
                for part in await self._answer(self.requests):
                    if not part:
                        writer.close()
                        return
                    writer.write(part)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        async with await asyncio.start_server(self.handle, "127.0.0.1", 0) as server:
            yield server.sockets[0].getsockname()[1]


def saying(*parts: bytes) -> Server:
    async def answer(number: int) -> list[bytes]:
        return list(parts)

    return Server(answer)


async def fired(server: Server, load: Load, folder: Path) -> Found:
    path = write_requests(folder / "requests", [chat(3, 3, stream=load.tokens > 0)])
    async with server.listening() as port:
        return await asyncio.to_thread(fire, load, port, path, CORE)


async def test_it_counts_the_answers_that_a_server_really_gave(tmp_path: Path) -> None:
    server = saying(WHOLE)
    found = await fired(server, Load(connections=4, each=25), tmp_path)
    assert (found.answered, found.failed, server.requests) == (100, 0, 100)
    assert found.latency_us.count == 100


async def test_a_closed_loop_ends_in_time_with_nothing_left_open(tmp_path: Path) -> None:
    server = saying(WHOLE)
    found = await fired(server, Load(connections=2, seconds=0.2), tmp_path)
    assert found.answered == server.requests > 0
    assert found.failed == 0
    assert 0.2 <= found.seconds < 2


async def test_requests_are_sent_in_turn_as_they_stand_in_the_file(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(4):
            seen.append(await reader.readexactly(len(requests[0])))
            writer.write(WHOLE)
        writer.close()

    requests = [chat(2, 2, stream=False, key=name) for name in ("a", "b")]
    path = write_requests(tmp_path / "requests", requests)
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.to_thread(fire, Load(each=4), port, path, CORE)
    assert seen == [*requests, *requests]


@pytest.mark.parametrize("size", [1, 2, 7, 64, len(STREAM)])
async def test_a_stream_is_understood_however_it_is_cut(size: int, tmp_path: Path) -> None:
    server = saying(*(STREAM[at : at + size] for at in range(0, len(STREAM), size)))
    found = await fired(server, Load(each=2, tokens=3), tmp_path)
    assert (found.answered, found.tokens, found.failed, found.first_wrong) == (2, 6, 0, "")
    assert found.first_token_us.count == 2


LATE = chunk(token(0)) + chunk(token(2)) + chunk(token(1))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (HEAD + chunk(token(0)) + chunk(token(1)) + chunk(DONE) + END, "a stream is not complete"),
        (HEAD + chunk(b"".join(map(token, range(3)))) + END, "a stream is not complete"),
        (HEAD + LATE + chunk(DONE) + END, "a token is not in its order"),
        (WHOLE, "an answer is not a stream"),
    ],
    ids=["a token short", "without [DONE]", "out of order", "no stream"],
)
async def test_a_stream_that_is_not_what_was_asked_for_is_broken(answer: bytes, why: str, tmp_path: Path) -> None:
    found = await fired(saying(answer), Load(each=1, tokens=3), tmp_path)
    assert (found.answered, found.broken) == (0, 1)
    assert found.first_wrong.startswith(why)


async def test_a_stream_that_is_cut_off_is_broken(tmp_path: Path) -> None:
    found = await fired(saying(HEAD, chunk(token(0)), b""), Load(each=1, tokens=3), tmp_path)
    assert (found.answered, found.broken) == (0, 1)


async def test_a_refusal_is_counted_as_one_and_says_its_status(tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}"
    found = await fired(saying(refusal), Load(each=3), tmp_path)
    assert (found.answered, found.refused, found.first_status) == (0, 3, 503)


async def test_an_answer_that_never_comes_is_told(tmp_path: Path) -> None:
    found = await fired(saying(HEAD), Load(each=1, seconds=0.1, patience=0.2), tmp_path)
    assert (found.answered, found.unfinished) == (0, 1)


async def test_a_connection_that_was_closed_while_it_was_idle_is_opened_again(tmp_path: Path) -> None:
    server = saying(WHOLE, b"")
    found = await fired(server, Load(each=3), tmp_path)
    assert (found.answered, found.reconnected, found.failed) == (3, 2, 0)


async def test_a_gap_is_measured_against_the_pace(tmp_path: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(HEAD + chunk(token(0)))
        await asyncio.sleep(0.5)
        writer.write(chunk(token(1)) + chunk(DONE) + END)
        writer.close()

    path = write_requests(tmp_path / "requests", [chat(1, 2, stream=True)])
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        load = Load(each=1, tokens=2, interval_us=400_000)
        found = await asyncio.to_thread(fire, load, port, path, CORE)
    assert found.gap_error_us.count == 1
    assert 95_000 < found.gap_error_us.most < 400_000


def stalling(at: int, seconds: float) -> Server:
    """Nobody is answered while it stalls, as when an event loop is blocked."""
    free = asyncio.Event()
    free.set()

    async def answer(number: int) -> list[bytes]:
        if number == at:
            free.clear()
            await asyncio.sleep(seconds)
            free.set()
        await free.wait()
        return [WHOLE]

    return Server(answer)


async def test_a_server_that_stalls_for_a_second_shows_it_in_the_p99_of_the_open_loop(tmp_path: Path) -> None:
    open_loop = await fired(stalling(100, 1.0), Load(connections=8, rate=200, seconds=3), tmp_path)
    assert open_loop.failed == 0
    assert 450 < open_loop.answered < 750
    assert open_loop.latency_us.p99 > 850_000
    assert open_loop.latency_us.p90 > 500_000, "a third of all were meant to be sent while it stalled"
    closed = await fired(stalling(100, 1.0), Load(connections=8, seconds=3), tmp_path)
    assert closed.latency_us.p99 < 500_000, "which a closed loop does not see"


async def test_arrivals_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    counts = []
    for seed in (1, 1, 2):
        found = await fired(saying(WHOLE), Load(connections=20, rate=300, seconds=0.5, seed=seed), tmp_path)
        counts.append(found.answered)
    assert counts[0] == counts[1] != counts[2]


async def test_held_streams_stay_as_long_as_the_block(tmp_path: Path) -> None:
    open_now = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        writer.write(HEAD + chunk(token(0)))
        while await reader.read(65_536):
            pass
        open_now -= 1
        writer.close()

    path = write_requests(tmp_path / "requests", [chat(1, 9, stream=True)])
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        block = held(Load(connections=20, tokens=9), server.sockets[0].getsockname()[1], path, CORE)
        assert await asyncio.to_thread(block.__enter__) == 20
        assert open_now == 20
        await asyncio.to_thread(block.__exit__, None, None, None)
        async with asyncio.timeout(5):
            while open_now:
                await asyncio.sleep(0.01)
