"""An engine behind https, with a certificate authority of the test's own."""

import ssl

from app.engines.http import HttpEngine, Timeouts
from app.errors import EngineBroken, EngineUnreachable
from app.reliability.watch import Watch
from tests.engines.http.replica import (
    CHUNKED,
    JSON,
    SSE,
    Do,
    Drip,
    Replica,
    Script,
    a_call,
    an_event,
    answer_of,
    chunk,
    failure_of,
    sized,
    stream,
)
from tests.support.until import until

ONE = an_event("one")


async def test_an_engine_may_speak_https(
    nothing_left: None, watch: Watch, timeouts: Timeouts, server_tls: ssl.SSLContext, trusted: None
) -> None:
    script: Script = [Do.REQUEST, sized(b"{}"), Do.REQUEST, Drip(stream(ONE, ONE)), Do.UNTIL_CLOSED]
    async with Replica([script]).listening(tls=server_tls) as replica:
        engine = HttpEngine(f"https://127.0.0.1:{replica.port}/", watch=watch, timeouts=timeouts)
        assert await answer_of(engine, a_call()) == [b"{}"]
        assert b"".join(await answer_of(engine, a_call(stream=True))) == ONE + ONE
        assert (replica.accepted, engine.idle_connections) == (1, 1)
        await engine.aclose()
        assert engine.open_connections == 0


async def test_https_is_used_for_the_models_too(
    nothing_left: None, watch: Watch, timeouts: Timeouts, server_tls: ssl.SSLContext, trusted: None
) -> None:
    script: Script = [Do.REQUEST, sized(b'{"data":[{"id":"a"}]}'), Do.UNTIL_CLOSED]
    async with Replica([script]).listening(tls=server_tls) as replica:
        engine = HttpEngine(f"https://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts)
        assert await engine.models() == {"a": None}
        await engine.aclose()


async def test_a_body_without_a_length_ends_with_its_connection_over_https_too(
    nothing_left: None, watch: Watch, timeouts: Timeouts, server_tls: ssl.SSLContext, trusted: None
) -> None:
    async with Replica([[Do.REQUEST, JSON + b"\r\n{}"]]).listening(tls=server_tls) as replica:
        engine = HttpEngine(f"https://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts)
        assert await answer_of(engine, a_call()) == [b"{}"]
        await engine.aclose()


async def test_leaving_early_and_breaking_off_are_the_same_over_https(
    nothing_left: None, watch: Watch, timeouts: Timeouts, server_tls: ssl.SSLContext, trusted: None
) -> None:
    begun = SSE + CHUNKED + chunk(ONE)
    scripts: list[Script] = [[Do.REQUEST, begun, Do.UNTIL_CLOSED], [Do.REQUEST, begun]]
    async with Replica(scripts).listening(tls=server_tls) as replica:
        engine = HttpEngine(f"https://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts)
        async with engine.open(a_call(stream=True)) as exchange:
            assert await anext(exchange) == ONE
        assert engine.open_connections == 0
        await until(lambda: replica.closed_by_client == 1)
        _, error = await failure_of(engine, a_call(stream=True))
        assert type(error) is EngineBroken
        await engine.aclose()


async def test_a_certificate_for_another_host_is_refused(
    nothing_left: None, watch: Watch, timeouts: Timeouts, stranger_tls: ssl.SSLContext, trusted: None
) -> None:
    async with Replica([[Do.REQUEST, sized(b"{}")]]).listening(tls=stranger_tls) as replica:
        await _is_unreachable(HttpEngine(f"https://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts))
        assert replica.requests == []


async def test_a_certificate_of_an_unknown_authority_is_refused(
    nothing_left: None, watch: Watch, timeouts: Timeouts, server_tls: ssl.SSLContext
) -> None:
    async with Replica([[Do.REQUEST, sized(b"{}")]]).listening(tls=server_tls) as replica:
        await _is_unreachable(HttpEngine(f"https://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts))
        assert replica.requests == []


async def test_https_to_an_engine_that_speaks_http_is_refused(
    nothing_left: None, watch: Watch, timeouts: Timeouts
) -> None:
    async with Replica([[Do.UNTIL_CLOSED]]).listening() as replica:
        replica.scripts = [[b"HTTP/1.1 400 Bad Request\r\n\r\n", Do.UNTIL_CLOSED]]
        await _is_unreachable(HttpEngine(f"https://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts))


async def _is_unreachable(engine: HttpEngine) -> None:
    _, error = await failure_of(engine, a_call())
    assert type(error) is EngineUnreachable
    assert error.message == EngineUnreachable.default
    assert "SSL" in (error.detail or "")
    assert engine.open_connections == 0
    await engine.aclose()
