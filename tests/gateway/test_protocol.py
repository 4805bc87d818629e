"""The connection below ASGI: heads that are too large, too slow or no HTTP, and hang-ups told at once."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from app.engines.scripted import Scripted
from app.errors import Outcome
from app.gateway.app import Gateway
from app.gateway.lifeline import Lifeline
from app.gateway.protocol import GatewayProtocol
from app.settings import Settings
from tests.gateway.conftest import Build, House, asking
from tests.support.server import RawClient, serving
from tests.support.until import until

BODY = json.dumps(asking()).encode()


def request(body: bytes = BODY, *headers: str, path: str = "/v1/chat/completions", method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


@pytest.fixture
async def served(house: House) -> AsyncIterator[tuple[House, int]]:
    async with serving(house.gateway) as port:
        yield house, port
        house.gateway.watch.clock = house.gateway.clock


Served = tuple[House, int]


def overdue(house: House, by_s: float = 1e12) -> None:
    """Time passes: every wait that has a shorter limit is over it."""
    then = house.gateway.clock() + by_s
    house.gateway.watch.clock = lambda: then
    house.gateway.watch.sweep()
    house.gateway.watch.clock = house.gateway.clock


async def well(port: int) -> bool:
    async with RawClient.to(port) as client:
        await client.say(request())
        return (await client.answer())[0] == 200


async def test_a_connection_serves_many_requests(served: Served) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        for _ in range(3):
            await client.say(request())
            assert (await client.answer())[0] == 200


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        await client.say(request(BODY, "x-request-id: first") + request(b"{}", "x-request-id: second"))
        answers = [await client.answer() for _ in range(2)]
        assert [(status, headers["x-request-id"]) for status, headers, _ in answers] == [
            (200, "first"),
            (400, "second"),
        ]


async def test_a_body_that_drips_in_is_still_one_body(served: Served) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        for byte in request():
            await client.say(bytes([byte]))
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_http_1_0_has_no_chunks_and_no_interim_answers(served: Served, stream: bool) -> None:
    """Load balancers speak it still, and ab."""
    _, port = served
    async with RawClient.to(port) as client:
        asked = request(json.dumps(asking(stream=stream)).encode(), "expect: 100-continue", "connection: keep-alive")
        await client.say(asked.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        head, _, body = (await asyncio.wait_for(client.reader.read(), 5)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        assert body.endswith(b"data: [DONE]\n\n" if stream else b"}")
        assert body.startswith(b"data: {" if stream else b"{")


class Thoughtful(Scripted):
    async def models(self) -> dict[str, int | None]:
        await asyncio.sleep(0.1)
        return await super().models()


async def test_the_first_request_of_all_is_answered(tmp_path: Path) -> None:
    """What engines serve is known by the time that anybody is let in."""
    settings = Settings.load(env={}, env_file=None, LOG_LEVEL="error", STATE_DIR=tmp_path)
    async with serving(Gateway(settings, {"only": Thoughtful()})) as port, RawClient.to(port) as client:
        await client.say(request())
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\n: x\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_400_in_json(served: Served, garbage: bytes) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        await client.say(garbage)
        status, headers, body = await client.answer()
        assert (status, headers["content-type"]) == (400, "application/json")
        assert json.loads(body)["error"]["code"] == "malformed_http"
        assert headers["x-request-id"]
        assert await client.closed()
    assert await well(port)


@pytest.mark.parametrize(
    "lines",
    [
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: -1",
        "transfer-encoding: xchunked",
    ],
)
async def test_ambiguous_lengths_are_refused(served: Served, lines: str) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        await client.say(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{lines}\r\n\r\n".encode())
        assert (await client.answer())[0] == 400


@pytest.mark.parametrize(
    "head",
    [
        "x-long: " + "a" * 65_536 + "\r\n",
        "".join(f"x-{index}: a\r\n" for index in range(500)),
    ],
    ids=["one long", "many"],
)
async def test_a_head_over_the_limit_is_431(served: Served, head: str) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        await client.say(f"GET /livez HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode())
        status, headers, body = await client.answer()
        assert (status, headers["connection"]) == (431, "close")
        assert json.loads(body)["error"]["code"] == "headers_too_large"
    assert await well(port)


async def test_a_head_without_end_is_431_while_it_arrives(served: Served) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        await client.say(b"GET /livez HTTP/1.1\r\nx-endless: ")
        for _ in range(40):
            await client.say(b"a" * 1_024)
        assert (await client.answer())[0] == 431


async def test_a_head_that_drips_for_ever_is_408(served: Served) -> None:
    house, port = served
    async with RawClient.to(port) as client:
        await client.say(b"POST /v1/chat/completions HTTP/1.1\r\nhos")
        await asyncio.sleep(0.05)
        overdue(house)
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (408, "close")


async def test_a_connection_that_never_speaks_is_closed(served: Served) -> None:
    house, port = served
    async with RawClient.to(port) as client:
        await asyncio.sleep(0.05)
        overdue(house)
        assert await client.closed()


async def test_a_body_that_stalls_is_408_and_never_reaches_an_engine(served: Served) -> None:
    house, port = served
    async with RawClient.to(port) as client:
        await client.say(request()[:-5])
        await until(lambda: house.recorder.in_progress == 1, steps=100_000)
        overdue(house)
        status, _, body = await client.answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert await client.closed()
    assert house.engine.calls == []


async def test_an_endless_chunked_body_is_413_while_it_arrives(build: Build) -> None:
    house = await build(settings={"MAX_BODY_BYTES": 10_000})
    async with serving(house.gateway) as port, RawClient.to(port) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        await client.say(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(20):
            await client.say(b"400\r\n" + b"x" * 0x400 + b"\r\n")
        assert (await client.answer())[0] == 413
        assert await client.closed()


async def test_a_client_that_waits_for_100_gets_it(served: Served) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        whole = request(BODY, "expect: 100-continue")
        await client.say(whole[: -len(BODY)])
        assert (await client.answer())[0] == 100
        await client.say(BODY)
        assert (await client.answer())[0] == 200


async def test_an_upgrade_is_not_followed(served: Served) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        await client.say(
            request(BODY, "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMAAABk")
        )
        status, headers, _ = await client.answer()
        assert status == 200
        assert "upgrade" not in headers
        await client.say(request())
        assert (await client.answer())[0] == 200


async def test_a_client_that_sends_everything_first_still_reads_its_refusal(build: Build) -> None:
    house = await build(settings={"MAX_BODY_BYTES": 10_000})
    async with serving(house.gateway) as port, httpx.AsyncClient(trust_env=False) as client:
        json_type = {"content-type": "application/json"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        for _ in range(5):
            done = await client.post(url, content=b"x" * 20_000_000, headers=json_type)
            assert (done.status_code, done.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_hang_up_is_told_without_a_task_that_waits_for_it(build: Build, stream: bool, how: str) -> None:
    house = await build(only=Scripted(stall_at=1 if stream else 0))
    async with serving(house.gateway) as port:
        async with RawClient.to(port) as client:
            await client.say(request(json.dumps(asking(stream=stream)).encode()))
            await until(lambda: house.engine.running == 1, steps=100_000)
            if how == "reset":
                client.reset()
        await asyncio.wait_for(until(lambda: house.engine.running == 0, steps=10_000_000), 1)
        await until(lambda: bool(house.recorder.records))
        assert house.engine.aborted == 1
        assert house.recorder.last.outcome is Outcome.CLIENT_GONE


async def test_a_reader_that_takes_nothing_is_cut_off_and_its_memory_freed(build: Build) -> None:
    house = await build(only=Scripted(words=("x" * 65_536,) * 400))
    async with serving(house.gateway) as port, RawClient.to(port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.say(request(json.dumps(asking(stream=True)).encode()))
        await until(lambda: house.engine.running == 1, steps=100_000)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if any(isinstance(wait, Lifeline) for wait in house.gateway.watch._waits):
                break
        overdue(house, 60)
        await asyncio.wait_for(until(lambda: house.engine.running == 0, steps=10_000_000), 1)
        assert house.engine.aborted == 1
        assert house.recorder.last.outcome is Outcome.CLIENT_GONE


async def test_garbage_behind_a_running_stream_never_gets_into_it(build: Build) -> None:
    house = await build(only=Scripted(stall_at=2))
    async with serving(house.gateway) as port, RawClient.to(port) as client:
        await client.say(request(json.dumps(asking(stream=True)).encode()))
        await until(lambda: house.engine.running == 1, steps=100_000)
        await client.say(b"\x00garbage\r\n\r\n")
        seen = b""
        try:
            while part := await asyncio.wait_for(client.reader.read(65_536), 5):
                seen += part
        except ConnectionResetError:
            pass
        assert b"malformed" not in seen
        await until(lambda: house.engine.running == 0, steps=100_000)


async def test_a_connection_that_is_kept_for_nothing_is_closed(served: Served) -> None:
    house, port = served
    async with RawClient.to(port) as client:
        await client.say(request())
        assert (await client.answer())[0] == 200
        overdue(house, 3_600)
        assert await client.closed()


async def test_a_connection_is_not_idle_while_it_is_answered(build: Build) -> None:
    house = await build(only=Scripted(stall_at=1))
    async with serving(house.gateway) as port, RawClient.to(port) as client:
        await client.say(request(json.dumps(asking(stream=True)).encode()))
        await until(lambda: house.engine.running == 1, steps=100_000)
        assert not any(isinstance(each, GatewayProtocol) for each in house.gateway.watch._waits)


async def test_a_target_may_be_escaped_and_may_have_a_query(served: Served) -> None:
    _, port = served
    async with RawClient.to(port) as client:
        await client.say(request(path="/v1/chat%2Fcompletions?a=b"))
        assert (await client.answer())[0] == 200
        await client.say(request(path="/livez?verbose", method="GET", body=b""))
        assert (await client.answer())[0] == 200


STREAM = request(json.dumps(asking(stream=True)).encode())


async def test_a_hang_up_is_told_to_the_request_that_is_answered_also_if_others_wait_behind_it(build: Build) -> None:
    house = await build(only=Scripted(stall_at=1))
    async with serving(house.gateway) as port:
        async with RawClient.to(port) as client:
            await client.say(STREAM + request())
            await until(lambda: house.engine.running == 1, steps=100_000)
        await until(lambda: house.engine.running == 0, steps=100_000)
        assert house.gateway.admission.entered == 1


async def test_a_hang_up_is_told_to_the_next_request_of_a_connection_too(build: Build) -> None:
    house = await build(only=Scripted(stall_at=1))
    async with serving(house.gateway) as port:
        async with RawClient.to(port) as client:
            await client.say(request(b"{}"))
            assert (await client.answer())[0] == 400
            await client.say(STREAM)
            await until(lambda: house.engine.running == 1, steps=100_000)
        await until(lambda: house.engine.running == 0, steps=100_000)
