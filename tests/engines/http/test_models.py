"""What an engine says it serves."""

import socket

import pytest

from app.engines.http import HttpEngine, Timeouts
from app.errors import (
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineLacks,
    EngineLost,
    EngineMisconfigured,
    EngineNonsense,
    EngineOutOfReach,
    EngineSilent,
    EngineUnreachable,
)
from app.reliability.limit import Load
from app.reliability.watch import Watch
from tests.engines.http.replica import JSON, OK, Do, Replica, sized
from tests.support.scarce import no_more_files

LISTING = b'{"object":"list","data":[{"id":"a","object":"model","max_model_len":4096},{"id":"b","owned_by":"me"}]}'


async def test_models_come_with_their_context_length_where_it_is_told(replica: Replica, engine: HttpEngine) -> None:
    replica.plays(Do.REQUEST, sized(LISTING), Do.UNTIL_CLOSED)
    assert await engine.models() == {"a": 4_096, "b": None}
    assert replica.requests[0].startswith(b"GET /v1/models HTTP/1.1\r\n")


@pytest.mark.parametrize("cache", [b"kv_cache_usage_perc", b"gpu_cache_usage_perc"])
async def test_load_is_what_vllms_gauges_tell_of_all_its_parts(
    replica: Replica, engine: HttpEngine, cache: bytes
) -> None:
    gauges = ((b"num_requests_running", b"2.0"), (b"num_requests_waiting", b"1.0"), (cache, b"0.25"))
    page = b"".join(b'vllm:%s{engine="%d"} %s\n' % (name, part, value) for part in (0, 1) for name, value in gauges)
    replica.plays(Do.REQUEST, sized(page), Do.UNTIL_CLOSED)
    assert await engine.load() == Load(waiting=2, running=4, kv_share=0.25)


async def test_the_engines_key_and_path_are_used(replica: Replica, watch: Watch, timeouts: Timeouts) -> None:
    replica.plays(Do.REQUEST, sized(LISTING), Do.UNTIL_CLOSED)
    url = f"http://127.0.0.1:{replica.port}/proxy/v1"
    engine = HttpEngine(url, watch=watch, timeouts=timeouts, api_key="sk-engine")
    await engine.models()
    assert replica.requests[0].startswith(b"GET /proxy/v1/models HTTP/1.1\r\n")
    assert b"authorization: Bearer sk-engine\r\n" in replica.requests[0].replace(b"Authorization", b"authorization")
    await engine.aclose()


async def test_a_proxy_in_the_environment_is_not_for_engines(
    replica: Replica, watch: Watch, timeouts: Timeouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    replica.plays(Do.REQUEST, sized(LISTING), Do.UNTIL_CLOSED)
    engine = HttpEngine(f"http://127.0.0.1:{replica.port}", watch=watch, timeouts=timeouts)
    assert await engine.models()
    await engine.aclose()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((Do.RESET,), EngineLost),
        ((Do.END,), EngineLost),
        ((JSON + b"content-length: 100\r\n\r\n{", Do.END), EngineLost),
        ((b"SSH-2.0-OpenSSH\r\n\r\n", Do.UNTIL_CLOSED), EngineNonsense),
        ((sized(b"{}"),), EngineNonsense),
        ((sized(b'{"data":[{"id":7}]}'),), EngineNonsense),
        ((sized(b"[" * 50_000),), EngineNonsense),
        ((sized(b"x" * 2_000_000),), EngineNonsense),
        ((sized(b"loading", head=b"HTTP/1.1 503 Busy\r\n"),), EngineBusy),
        ((sized(b"", head=b"HTTP/1.1 500 Oh\r\n"),), EngineFailed),
        ((sized(b"", head=b"HTTP/1.1 401 Who\r\n"),), EngineMisconfigured),
        ((sized(b"", head=b"HTTP/1.1 404 Where\r\n"),), EngineLacks),
        ((sized(b"", head=b"HTTP/1.1 302 There\r\nlocation: http://127.0.0.1/\r\n"),), EngineMisconfigured),
        ((sized(b"", head=OK.replace(b"200", b"204")),), EngineNonsense),
    ],
)
async def test_an_engine_that_does_not_tell_is_not_ready(
    replica: Replica, engine: HttpEngine, answer: tuple[bytes | Do, ...], kind: type[EngineError]
) -> None:
    replica.plays(Do.REQUEST, *answer)
    with pytest.raises(EngineError) as failed:
        await engine.models()
    assert type(failed.value) is kind


async def test_an_engine_that_is_not_there_is_unreachable(nothing_left: None, watch: Watch, timeouts: Timeouts) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        engine = HttpEngine(f"http://127.0.0.1:{taken.getsockname()[1]}", watch=watch, timeouts=timeouts)
        with pytest.raises(EngineUnreachable):
            await engine.models()
        await engine.aclose()


async def test_what_we_have_too_little_of_is_not_the_engines_fault(replica: Replica, engine: HttpEngine) -> None:
    with no_more_files(), pytest.raises(EngineOutOfReach):
        await engine.models()


async def test_an_engine_that_does_not_answer_is_silent(
    replica: Replica, engine: HttpEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engines.http.catalogue.ANSWER_S", 0.0)
    replica.plays(Do.REQUEST, Do.UNTIL_CLOSED)
    with pytest.raises(EngineSilent):
        await engine.models()
