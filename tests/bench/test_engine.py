"""The engine with a capacity: its steps, its queue, and its honest counts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.client import End
from bench.engine import Connection, Counts, Engine, Shape
from bench.open_loop import HangUp, Shot, chat, fire

FAST = Shape(sequences=2, step_ms=2, prompt_steps=1)


@asynccontextmanager
async def running(shape: Shape) -> AsyncIterator[tuple[Engine, int]]:
    engine = Engine(shape)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", 0)
    async with server:
        yield engine, server.sockets[0].getsockname()[1]


async def asked(shape: Shape, *requests: bytes) -> tuple[list[Shot], Counts]:
    async with running(shape) as (engine, port):
        shots = [Shot(0, request, keeps_body=True) for request in requests]
        await fire(port, shots, patience_s=10)
        return shots, engine.counts()


async def test_it_works_on_so_many_at_once_and_the_rest_waits() -> None:
    shots, counts = await asked(FAST, *[chat(3, 4, stream=True)] * 5)
    assert {shot.seen.end for shot in shots} == {End.DONE}
    assert (counts.most_running, counts.most_waiting) == (2, 4)  # the first began at once, by itself
    assert (counts.running, counts.waiting, counts.executed) == (0, 0, 5)


async def test_an_answer_takes_the_time_of_its_shape() -> None:
    shape = Shape(sequences=1, step_ms=10, prompt_steps=3)
    shots, _ = await asked(shape, chat(3, 4, stream=False))
    assert shape.service_s(4) == pytest.approx(0.06)
    assert shots[0].seen.took_s >= 0.055


async def test_usage_is_what_was_made_streamed_or_whole() -> None:
    (whole, streamed), counts = await asked(FAST, chat(3, 4, stream=False, user="a"), chat(3, 5, stream=True, user="b"))
    answer = json.loads(whole.seen.body)
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    assert answer["choices"][0]["message"]["content"] == " w1 w2 w3 w4"
    assert counts.finished["a"].tokens == 8
    assert counts.finished["b"].completion_tokens == streamed.seen.body.count(b'"content":" w') == 5
    assert b"usage" not in streamed.seen.body


async def test_usage_comes_with_every_event_when_asked() -> None:
    request = {"messages": [], "max_tokens": 2, "stream": True}
    request["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    body = json.dumps(request).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    (shot,), _ = await asked(FAST, head + body)
    events = [json.loads(line[6:]) for line in shot.seen.body.split(b"\n\n")[:-2]]
    assert [event["usage"]["completion_tokens"] for event in events] == [1, 1, 2, 2]


async def test_two_executions_never_say_the_same() -> None:
    shots, _ = await asked(FAST, *[chat(3, 4, stream=False)] * 2)
    assert len({shot.seen.body for shot in shots}) == 2


async def test_who_hangs_up_is_out_of_the_batch_and_out_of_the_queue() -> None:
    async with running(FAST) as (engine, port):
        endless = chat(3, 100_000, stream=True, user="gone")
        shots = [Shot(0, endless, hang_up=HangUp(0.05, reset=bool(number % 2))) for number in range(4)]
        await fire(port, shots, patience_s=5)
        while engine.counts().running or engine.counts().waiting:
            await asyncio.sleep(0)
        counts = engine.counts()
    assert (counts.taken, counts.executed, counts.aborted["gone"].requests) == (4, 0, 4)
    assert counts.aborted["gone"].completion_tokens > 0


async def test_what_it_cannot_read_is_refused() -> None:
    body = b'{"messages": 1}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
    (shot,), counts = await asked(FAST, head + body)
    assert (shot.seen.status, counts.taken) == (400, 0)
