"""What an engine gets to read: the client's body, and nothing else of the client's."""

from contextlib import AsyncExitStack

import pytest

from app.engines.http import HttpEngine, Limits, Timeouts
from app.engines.http.address import parse
from app.generation import Call, Route
from app.reliability.watch import Watch
from tests.engines.http.replica import CHUNKED, LAST_CHUNK, SSE, Do, Replica, a_call, answer_of, sized


async def sent(engine: HttpEngine, replica: Replica, call: Call) -> list[bytes]:
    answer = SSE + CHUNKED + LAST_CHUNK if call.stream else sized(b"{}")
    replica.plays(Do.REQUEST, answer, Do.UNTIL_CLOSED)
    await answer_of(engine, call)
    return replica.requests[-1].split(b"\r\n")


async def test_a_request_says_what_it_must_and_no_more(replica: Replica, engine: HttpEngine) -> None:
    assert await sent(engine, replica, a_call()) == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: 127.0.0.1:%d" % replica.port,
        b"content-type: application/json",
        b"accept: application/json",
        b"accept-encoding: identity",
        b"x-request-id: req-1",
        b"content-length: 16",
        b"",
        b'{"model":"demo"}',
    ]


async def test_a_stream_asks_for_one(replica: Replica, engine: HttpEngine) -> None:
    assert b"accept: text/event-stream" in await sent(engine, replica, a_call(stream=True))


async def test_the_trace_goes_on_where_the_call_has_one(replica: Replica, engine: HttpEngine) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    call = Call(id="1", route=Route.TOKENIZE, model="demo", body=b"{}", expires_at=1_000.0, traceparent=trace)
    lines = await sent(engine, replica, call)
    assert lines[0] == b"POST /tokenize HTTP/1.1"
    assert b"traceparent: " + trace.encode() in lines


async def test_the_engines_own_key_and_path_are_used(
    replica: Replica, watch: Watch, timeouts: Timeouts, limits: Limits
) -> None:
    url = f"http://127.0.0.1:{replica.port}/behind/a/proxy/"
    engine = HttpEngine(url, watch=watch, timeouts=timeouts, limits=limits, api_key="sk-engine")
    lines = await sent(engine, replica, a_call())
    assert lines[0] == b"POST /behind/a/proxy/v1/chat/completions HTTP/1.1"
    assert b"authorization: Bearer sk-engine" in lines
    await engine.aclose()


async def test_an_engine_may_have_an_ipv6_address(nothing_left: None, watch: Watch, timeouts: Timeouts) -> None:
    async with AsyncExitStack() as stack:
        replica = Replica()
        try:
            await stack.enter_async_context(replica.listening(host="::1"))
        except OSError:
            pytest.skip("no IPv6 here")
        engine = HttpEngine(f"http://[::1]:{replica.port}", watch=watch, timeouts=timeouts)
        assert b"host: [::1]:%d" % replica.port in await sent(engine, replica, a_call())
        await engine.aclose()


# --- addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "prefix"),
    [
        ("http://gpu-1:8000", "gpu-1", 8000, "gpu-1:8000", ""),
        ("http://gpu-1", "gpu-1", 80, "gpu-1", ""),
        ("http://gpu-1:80/", "gpu-1", 80, "gpu-1", ""),
        ("http://gpu-1:8000/v1", "gpu-1", 8000, "gpu-1:8000", ""),
        ("http://gpu-1:8000/a/v1/", "gpu-1", 8000, "gpu-1:8000", "/a"),
        ("http://gpu-1:8000/a%20b/c", "gpu-1", 8000, "gpu-1:8000", "/a%20b/c"),
        ("http://[::1]:8000", "::1", 8000, "[::1]:8000", ""),
        ("https://engines.example", "engines.example", 443, "engines.example", ""),
        ("https://engines.example:80", "engines.example", 80, "engines.example:80", ""),
    ],
)
def test_an_address_is_read_from_its_url(url: str, host: str, port: int, authority: str, prefix: str) -> None:
    address = parse(url)
    assert (address.host, address.port, address.authority, address.prefix) == (host, port, authority, prefix)
    assert (address.tls is not None) == url.startswith("https")


@pytest.mark.parametrize(
    "url",
    [
        "gpu-1:8000",
        "ftp://gpu-1",
        "http://",
        "http://gpu-1:99999",
        "http://gpu-1:port",
        "http://user:secret@gpu-1",
        "http://gpu-1?x=y",
        "http://gpu-1/#x",
        "http://gpu-1/a b",
        "http://gpu-1/\r\nx: y",
        "http://gpü-1",
        f"http://{'a' * 64}",
        "http://gpu..1",
    ],
)
def test_an_impossible_url_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\r\n]+$") as refused:
        parse(url)
    assert "secret" not in str(refused.value)


def test_a_key_that_would_break_the_header_is_refused_at_the_start(watch: Watch, timeouts: Timeouts) -> None:
    with pytest.raises(ValueError, match="printable") as refused:
        HttpEngine("http://gpu-1", watch=watch, timeouts=timeouts, api_key="sk\r\nx: y")
    assert "sk" not in str(refused.value)
