"""The listener for machines: it answers while the gateway cannot, it says little, and nobody holds it up."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from app.engines.scripted import Scripted
from app.gateway import internal
from app.gateway.app import Gateway
from app.gateway.heartbeat import Heartbeat
from app.gateway.internal import InternalListener, Probes
from app.gateway.listener import Address, CannotListen, listener
from app.gateway.siblings import Family, Heard, Query, Siblings
from app.settings import Settings
from tests.gateway.conftest import Build, House
from tests.support.clock import FakeClock
from tests.support.server import RawClient

ANY_PORT = Address("127.0.0.1", 0, "METRICS_HOST", "set METRICS_PORT=")


@asynccontextmanager
async def served(house: House, heartbeat: Heartbeat | None = None) -> AsyncIterator[int]:
    gateway = house.gateway
    probes = Probes(gateway.fleet, gateway.admission, gateway.observers.metrics, heartbeat or gateway.heartbeat)
    one = InternalListener(listener(ANY_PORT), probes, gateway.siblings)
    async with one.serving():
        yield one.listening.getsockname()[1]
    assert one.listening.fileno() == -1


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    async with RawClient.to(port) as client:
        await client.say(request)
        return await client.answer()


async def get(port: int, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    return await ask(port, "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode())


async def test_probes_and_metrics_are_answered_without_a_key(house: House) -> None:
    async with served(house) as port:
        assert (await get(port, "/livez"))[::2] == (200, b'{"status":"ok"}')
        assert (await get(port, "/readyz?verbose"))[::2] == (200, b'{"status":"ready"}')
        status, headers, page = await get(port, "/metrics")
    assert (status, headers["connection"]) == (200, "close")
    assert headers["content-type"].startswith("text/plain; version=")
    assert b"gllm_event_loop_lag_seconds_bucket" in page


async def test_metrics_come_in_the_format_that_carries_exemplars_to_who_takes_it(house: House) -> None:
    async with served(house) as port:
        _, headers, page = await get(port, "/metrics", "Accept: application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")


async def test_a_draining_gateway_and_one_without_replicas_are_not_ready(build: Build) -> None:
    house = await build(only=Scripted())
    async with served(house) as port:
        house.gateway.fleet.failed(house.gateway.fleet.replicas[0], "gone")
        status, headers, body = await get(port, "/readyz")
        assert (status, headers["retry-after"], headers["x-gllm-reason"]) == (503, "1", "no_replica"), body
        house.gateway.admission.drain(0)
        assert (await get(port, "/readyz"))[1]["x-gllm-reason"] == "draining"
        assert (await get(port, "/livez"))[0] == 200
        await house.gateway.admission.empty()


@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics/", "/livez/x", "/admin/usage", "/%6Divez"])
async def test_nothing_else_is_there(house: House, path: str) -> None:
    async with served(house) as port:
        assert (await get(port, path))[0] == 404


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"POST /livez HTTP/1.1", 405),
        (b"OPTIONS /metrics HTTP/1.1", 405),
        (b"GET livez HTTP/1.1", 400),
        (b"GET /livez HTTP/2.0", 400),
        (b"\x16\x03\x01", 400),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1", 431),
    ],
)
async def test_what_is_asked_wrongly_is_refused(house: House, request_line: bytes, status: int) -> None:
    async with served(house) as port:
        assert (await ask(port, request_line + b"\r\n\r\n"))[0] == status


async def test_head_is_get_without_the_body(house: House) -> None:
    async with served(house) as port, RawClient.to(port) as client:
        await client.say(b"HEAD /livez HTTP/1.1\r\n\r\n")
        answer = await asyncio.wait_for(client.reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 15\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def asked_by_who_holds_the_loop(port: int, path: str) -> bytes:
    """Blocking on purpose: nothing else of this loop runs meanwhile."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65_536), b""))


async def test_it_answers_while_the_event_loop_is_held_and_then_says_that_it_is(house: House) -> None:
    clock = FakeClock()
    async with served(house, Heartbeat(clock)) as port:
        assert b"llm_requests_in_progress" in asked_by_who_holds_the_loop(port, "/metrics")
        assert asked_by_who_holds_the_loop(port, "/livez").startswith(b"HTTP/1.1 200")
        clock.advance(internal.STALLED_S + 1)
        answer = asked_by_who_holds_the_loop(port, "/livez")
    assert answer.startswith(b"HTTP/1.1 503")
    assert answer.endswith(b'{"status":"stalled","seconds":5.8}')


async def test_a_beat_tells_how_late_it_came_and_ends_the_alarm() -> None:
    clock, lags = FakeClock(), list[float]()

    async def held(seconds: float) -> None:
        assert heartbeat.late_s == 0
        if lags:
            raise asyncio.CancelledError
        clock.advance(seconds + 3)

    heartbeat = Heartbeat(clock, lags.append, held)
    with pytest.raises(asyncio.CancelledError):
        await heartbeat.run()
    assert lags == [3.0]


async def test_who_sends_nothing_or_too_slowly_is_cut_off(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internal, "CONNECTION_S", 0.05)
    async with served(house) as port, RawClient.to(port) as silent, RawClient.to(port) as slow:
        await slow.say(b"GET /livez HT")
        assert await silent.closed()
        assert await slow.closed()
        monkeypatch.setattr(internal, "CONNECTION_S", 5)
        assert (await get(port, "/livez"))[0] == 200


async def test_connections_are_bounded_and_there_is_room_again_when_they_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internal, "MAX_CONNECTIONS", 2)
    async with served(house) as port:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                client = await stack.enter_async_context(RawClient.to(port))
                await client.say(b"GET /li")
            async with RawClient.to(port) as third:
                assert await third.closed()
        while not await answered(port):  # its thread may not have heard yet that they are gone
            await asyncio.sleep(0)


async def answered(port: int) -> bool:
    try:
        async with RawClient.to(port) as client:
            await client.say(b"GET /livez HTTP/1.1\r\n\r\n")
            return await asyncio.wait_for(client.reader.read(), 5) != b""
    except ConnectionResetError:
        return False


def settings(**flags: object) -> Settings:
    return Settings.load({}, None, engine_urls="http://127.0.0.1:9", **flags)


def test_without_a_port_nothing_listens() -> None:
    gateway = Gateway(settings())
    gateway.observers.log.close()
    assert gateway.internal is None


def test_a_taken_port_is_refused_with_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CannotListen) as refused:
            Gateway(settings(metrics_port=port))
    assert str(refused.value) == (
        f"Port {port} on 127.0.0.1 is taken. Stop what uses it, or set METRICS_PORT={port + 1}"
    )


def test_a_host_that_is_none_is_refused_with_its_name() -> None:
    with pytest.raises(CannotListen, match=r"^METRICS_HOST=nowhere\.invalid is not an address: "):
        listener(Address("nowhere.invalid", 0, "METRICS_HOST", ""))
    with pytest.raises(CannotListen, match=r"^METRICS_HOST=192\.0\.2\.1 is not an address of this machine\.$"):
        listener(Address("192.0.2.1", 0, "METRICS_HOST", ""))


async def test_siblings_are_told_what_others_are_not_and_for_as_long_as_it_takes(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internal, "CONNECTION_S", 0.2)
    one = await build(family=Family((), "key"))

    async def slow_page(query: Query) -> bytes:
        await asyncio.sleep(0.5)
        return query["said"].encode()

    one.gateway.siblings.tell("slow", slow_page)
    async with served(one) as port:
        url = f"http://127.0.0.1:{port}"
        for headers in ((), ("Authorization: Bearer ",), ("Authorization: Bearer quay",)):
            assert (await get(port, "/siblings/slow?said=x", *headers))[0] == 404
        assert (await get(port, "/siblings/quick", "Authorization: Bearer key"))[0] == 404
        asking, stranger = Siblings(Family((url,), "key")), Siblings(Family((url,), "quay"))
        assert await asking.ask("slow", {"said": "a&b=c ü"}) == Heard(("a&b=c ü".encode(),), ())
        assert await asking.ask("slow", {"said": "x"}, within_s=0.1) == Heard((), (url,))
        assert await stranger.ask("slow", {"said": "x"}) == Heard((), (url,))
        await asking.aclose()
        await stranger.aclose()
    assert await Siblings(None).ask("slow", {}) == Heard((), ())
