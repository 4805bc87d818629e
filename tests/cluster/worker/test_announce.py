"""Registering, over a real socket, with a gateway that comes, refuses and goes."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.cluster.worker.announce import Announcer

HOST, PORT = "127.0.0.1", 24_380
GATEWAY = f"http://{HOST}:{PORT}"


class Gateway:
    """Says what it is told to say, and remembers who came."""

    def __init__(self) -> None:
        self.status = 200
        self.heard: list[tuple[str, dict[str, str], object]] = []

    @asynccontextmanager
    async def up(self) -> AsyncIterator[None]:
        async with await asyncio.start_server(self._answer, HOST, PORT):
            yield

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = asked.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.heard.append((first, headers, body))
        said = b'{"error": {"message": "Not today."}}'
        writer.write(
            b"HTTP/1.1 %d x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (self.status, len(said)) + said
        )
        writer.close()


@asynccontextmanager
async def announcing(*gateways: str) -> AsyncIterator[list[str]]:
    told: list[str] = []
    announcer = Announcer("http://here:1", gateways, "secret", 0.02, told.append)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(announcer.run())
        yield told
        running.cancel()


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


async def test_a_worker_says_where_it_is_again_and_again() -> None:
    gateway = Gateway()
    async with gateway.up(), announcing(GATEWAY) as told:
        await until(lambda: len(gateway.heard) >= 3)
    first, headers, body = gateway.heard[0]
    assert first == "POST /add_worker HTTP/1.1"
    assert headers["authorization"] == "bearer secret"
    assert body == {"address": "http://here:1"}
    assert told == [f"Registered with the gateway at {GATEWAY}."]


async def test_one_line_when_a_gateway_goes_and_one_when_it_comes_back() -> None:
    gateway = Gateway()
    async with announcing(GATEWAY) as told:
        await until(lambda: len(told) == 1)
        async with gateway.up():
            await until(lambda: len(gateway.heard) >= 3)
        await until(lambda: len(told) == 3)
        await asyncio.sleep(0.2)
    away = f"The gateway at {GATEWAY} does not answer (ConnectError)."
    assert told == [away, f"Registered with the gateway at {GATEWAY}.", away]


async def test_why_a_gateway_refuses_is_told() -> None:
    gateway = Gateway()
    async with gateway.up(), announcing(GATEWAY) as told:
        await until(lambda: len(told) == 1)
        gateway.status = 401
        await until(lambda: len(told) == 2)
        gateway.status = 404
        await until(lambda: len(told) == 3)
    assert told[1:] == [
        f"The gateway at {GATEWAY} does not know this worker's secret (CLUSTER_SECRET).",
        f"The gateway at {GATEWAY} does not take this worker: it answers 404. Not today.",
    ]


async def test_a_gateway_that_is_away_keeps_no_other_one_waiting() -> None:
    gateway = Gateway()
    async with gateway.up(), announcing("http://127.0.0.1:9", GATEWAY):
        await until(lambda: len(gateway.heard) >= 3)
