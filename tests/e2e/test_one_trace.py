"""A real gateway and the real engine that it has started tell one trace together. Only a `.env` says where to."""

import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import running
from tests.support.collector import Collector, Seen, collector
from tests.support.ports import free_port
from tests.support.processes import EngineSite, GatewayProcess, comes_true
from tests.support.sockets import Raw, request
from tests.support.upstream import Says, upstream

pytestmark = pytest.mark.timeout(120, func_only=True)

CALLERS = "b" * 16
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
HELLO = {"messages": [{"role": "user", "content": "Hello, who are you?"}], "max_tokens": 6, "ignore_eos": True}
ATTEMPT = ["POST /v1/chat/completions", "route", "chat demo"]
SECRET = "open sesame"


class House:
    """A gateway, its engine, and who collects what both tell."""

    def __init__(self, gateway: GatewayProcess, engine: EngineSite, collecting: Collector) -> None:
        self.gateway = gateway
        self.engine = engine
        self.collecting = collecting

    def ask(self, trace_id: str, flags: str = "01", path: str = CHAT, **asked: object) -> httpx.Response:
        given = {"input": SECRET} if path == EMBEDDINGS else HELLO | asked
        return self.gateway.http.post(path, json=given, headers={"traceparent": traceparent(trace_id, flags)})


@pytest.fixture(scope="module")
def house(logs: Path) -> Iterator[House]:
    engine_port = free_port()
    folder = logs / "one-trace"
    folder.mkdir()
    with collector() as collecting:
        (folder / ".env").write_text(
            f"OTEL_EXPORTER_OTLP_ENDPOINT={collecting.url}\nOTEL_BSP_SCHEDULE_DELAY=100\n"
            "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test\n"
        )
        started = GatewayProcess("one-trace", free_port(), logs, ENGINE_PORT_START=str(engine_port))
        with running(started, "/readyz") as gateway:
            engine = EngineSite(engine_port)
            yield House(gateway, engine, collecting)
            engine.http.close()


@pytest.fixture
def trace_id() -> str:
    return secrets.token_hex(16)


def traceparent(trace_id: str, flags: str = "01") -> str:
    return f"00-{trace_id}-{CALLERS}-{flags}"


CLOCKS_S = 0.001
"""By so much two processes may differ about what time it is: each asks once, and counts on from there."""
AFTERWARDS_S = 0.1
"""An engine has written its last byte before its block ends, and the client may have read it by then."""


def times(span: Seen) -> dict[str, float]:
    prefix = "gen_ai.latency."
    return {name.removeprefix(prefix): value for name, value in span.attributes.items() if name.startswith(prefix)}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_request_is_one_trace_from_its_caller_into_the_engine(house: House, trace_id: str, stream: bool) -> None:
    answer = house.ask(trace_id, stream=stream, n=2, temperature=0.5)
    assert answer.status_code == 200
    names = [*ATTEMPT, *(["stream"] if stream else []), "llm_request"]
    server, route, attempt, *streamed, engine = house.collecting.trace(trace_id, names)
    assert [span.parent_id for span in (server, route, attempt)] == [CALLERS, server.span_id, server.span_id]
    assert (engine.parent_id, engine.kind) == (attempt.span_id, "server")
    assert all(span.parent_id == attempt.span_id for span in streamed)
    assert attempt.began - CLOCKS_S <= engine.began <= engine.ended <= server.ended + AFTERWARDS_S

    said = engine.attributes
    assert said["gllm.request_id"] == server.attributes["gllm.request_id"] == answer.headers["x-request-id"]
    assert said["gen_ai.response.id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    assert (said["gen_ai.operation.name"], said["gen_ai.provider.name"]) == ("chat", "transformers")
    assert said["gen_ai.request.model"] == said["gen_ai.response.model"] == "demo"
    assert said["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert (said["gen_ai.request.max_tokens"], said["gen_ai.request.temperature"]) == (6, 0.5)
    assert said["gen_ai.request.choice.count"] == 2
    assert said.get("gen_ai.request.stream", False) is stream
    assert said["http.response.status_code"] == 200
    for name in ("max_tokens", "temperature", "choice.count"):
        assert attempt.attributes[f"gen_ai.request.{name}"] == said[f"gen_ai.request.{name}"]
    for name in ("input_tokens", "output_tokens"):
        assert attempt.attributes[f"gen_ai.usage.{name}"] == said[f"gen_ai.usage.{name}"] > 0


def test_the_engine_tells_where_its_time_went(house: House, trace_id: str) -> None:
    house.ask(trace_id)
    engine = house.collecting.trace(trace_id, [*ATTEMPT, "llm_request"])[-1]
    took = times(engine)
    assert took["time_in_queue"] + took["time_in_model_prefill"] == pytest.approx(took["time_to_first_token"], abs=1e-6)
    inference = took["time_in_model_prefill"] + took["time_in_model_decode"]
    assert inference == pytest.approx(took["time_in_model_inference"], abs=1e-6)
    assert all(seconds > 0 for seconds in took.values())
    assert took["time_in_queue"] + took["time_in_model_inference"] < took["e2e"] < engine.ended - engine.began
    assert engine.began < engine.events["first_token"] < engine.ended


def test_the_engine_has_a_name_of_its_own_and_all_else_that_the_settings_say(house: House, trace_id: str) -> None:
    house.ask(trace_id)
    server, _, attempt, engine = house.collecting.trace(trace_id, [*ATTEMPT, "llm_request"])
    assert (server.resource["service.name"], engine.resource["service.name"]) == ("gllm", "gllm-engine")
    assert engine.resource["service.instance.id"] == attempt.attributes["gllm.replica"] == "engine-0"
    assert engine.resource["deployment.environment.name"] == "test"
    assert engine.resource["service.version"] == server.resource["service.version"]


def test_what_came_from_the_cache_is_told(house: House) -> None:
    first, again = secrets.token_hex(16), secrets.token_hex(16)
    long = [{"role": "user", "content": f"{first} and so on and so forth, " * 12}]
    for each in (first, again):
        house.ask(each, messages=long)
    cached = "gen_ai.usage.cache_read.input_tokens"
    assert cached not in house.collecting.trace(first, [*ATTEMPT, "llm_request"])[-1].attributes
    *_, attempt, engine = house.collecting.trace(again, [*ATTEMPT, "llm_request"])
    assert 0 < engine.attributes[cached] == attempt.attributes[cached] < engine.attributes["gen_ai.usage.input_tokens"]


def test_a_retried_request_has_two_attempts_and_the_engine_hangs_below_the_second(
    house: House, logs: Path, trace_id: str
) -> None:
    port, name = free_port(), "one-trace-retried"
    urls = f"http://127.0.0.1:{port},{house.engine.url}"
    otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": house.collecting.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    settings = {"ENGINE_URLS": urls, "ROUTING_POLICY": "round_robin", **otel}
    with upstream(port) as broken, running(GatewayProcess(name, free_port(), logs, **settings), "/readyz") as gateway:
        broken.says += [Says(500, b"{}")] * 20
        assert comes_true(lambda: gateway.sum_of("gllm_replica_ready") == 2, 10)
        retried = House(gateway, house.engine, house.collecting)
        while retried.ask(trace_id).headers["x-gllm-attempts"] != "2":
            trace_id = secrets.token_hex(16)
        names = [ATTEMPT[0], *(2 * ["route", "chat demo"]), "llm_request"]
        server, route, failed, again, well, engine = retried.collecting.trace(trace_id, names)
    assert (failed.failed, well.failed, server.failed) == (True, False, False)
    assert failed.attributes["error.type"] == "EngineFailed"
    assert {span.parent_id for span in (route, failed, again, well)} == {server.span_id}
    assert engine.parent_id == well.span_id
    assert well.attributes["gllm.attempt"] == 2
    assert (well.attributes["server.address"], well.attributes["server.port"]) == ("127.0.0.1", house.engine.port)
    assert (route.attributes["gllm.candidates"], again.attributes["gllm.candidates"]) == (2, 1)
    assert failed.ended <= again.began


def test_a_client_that_hangs_up_is_told_on_both_sides(house: House, trace_id: str) -> None:
    endless = HELLO | {"max_tokens": 1_500, "stream": True}
    with Raw(house.gateway.port) as client:
        client.say(request(CHAT, endless, f"traceparent: {traceparent(trace_id)}"))
        client.until(b"data: ")
    server, _, attempt, stream, engine = house.collecting.trace(trace_id, [*ATTEMPT, "stream", "llm_request"])
    assert server.attributes["gllm.outcome"] == "client_gone"
    assert engine.parent_id == attempt.span_id == stream.parent_id
    assert engine.attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert engine.attributes["error.type"] == "ClientGone"
    assert (server.failed, engine.failed) == (False, False)
    assert engine.attributes["gen_ai.usage.output_tokens"] < 1_500


def test_what_the_engine_refuses_is_told_on_both_sides(house: House, trace_id: str) -> None:
    assert house.ask(trace_id, max_tokens=100_000).status_code == 400
    server, _, attempt, engine = house.collecting.trace(trace_id, [*ATTEMPT, "llm_request"])
    assert engine.parent_id == attempt.span_id
    assert {span.attributes["error.type"] for span in (server, attempt, engine)} == {"ContextTooLong"}
    assert engine.attributes["http.response.status_code"] == 400
    assert "gen_ai.usage.input_tokens" not in engine.attributes
    assert (server.failed, engine.failed) == (False, False)


def test_embeddings_are_told_too_and_no_prompt_ever(house: House, trace_id: str) -> None:
    assert house.ask(trace_id, path=EMBEDDINGS).status_code == 200
    engine = house.collecting.trace(trace_id, ["POST /v1/embeddings", "route", "embeddings demo", "llm_request"])[-1]
    assert engine.attributes["gen_ai.operation.name"] == "embeddings"
    assert engine.attributes["gen_ai.usage.input_tokens"] > 0
    assert SECRET.encode() not in b"".join(house.collecting.payloads)
    assert b"who are you" not in b"".join(house.collecting.payloads)


def test_what_the_caller_does_not_keep_neither_tells(house: House, trace_id: str) -> None:
    unkept = secrets.token_hex(16)
    assert house.ask(unkept, "00").status_code == 200
    house.ask(trace_id)
    house.collecting.trace(trace_id, [*ATTEMPT, "llm_request"])
    house.collecting.trace(unkept, [])


def test_a_collector_that_takes_nothing_costs_the_engine_some_spans_and_nothing_else(house: House) -> None:
    dropped = house.engine.sum_of("gllm_spans_dropped_total")
    house.collecting.status = 500
    try:
        for _ in range(5):
            assert house.ask(secrets.token_hex(16)).status_code == 200
        assert comes_true(lambda: house.engine.sum_of("gllm_spans_dropped_total") == dropped + 5, 60)
    finally:
        house.collecting.status = 200
    said = house.gateway.log.parent / "one-trace" / ".state" / "logs" / "engine-0.log"
    assert said.read_text().count("The collector takes no traces, which are dropped: ") == 1


def test_the_last_spans_are_sent_at_the_end(house: House, trace_id: str) -> None:
    """The last test of this file."""
    house.collecting.open.clear()  # what is sent now waits
    house.ask(trace_id)
    house.gateway.signal(signal.SIGTERM)
    time.sleep(0.2)
    house.collecting.open.set()
    assert house.gateway.wait(20) == 0
    house.collecting.trace(trace_id, [*ATTEMPT, "llm_request"], limit_s=0)
