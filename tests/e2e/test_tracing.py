"""A real gateway process, told by a `.env` where its collector is: one trace from its caller to its engine."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import running
from tests.support.collector import Collector, collector
from tests.support.ports import free_port
from tests.support.processes import GatewayProcess, comes_true
from tests.support.upstream import Upstream, upstream

TRACE_ID, CALLERS = "a" * 32, "b" * 16
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def collecting() -> Iterator[Collector]:
    with collector() as one:
        yield one


class Traced:
    """A gateway with its engine and its collector."""

    def __init__(self, gateway: GatewayProcess, engine: Upstream, internal: str) -> None:
        self.gateway = gateway
        self.engine = engine
        self.internal = internal

    def ask(self) -> httpx.Response:
        headers = {"traceparent": f"00-{TRACE_ID}-{CALLERS}-01"}
        return self.gateway.http.post("/v1/chat/completions", json=CHAT, headers=headers)

    def stop(self) -> float:
        """How long it took."""
        began = time.monotonic()
        self.gateway.signal(signal.SIGTERM)
        assert self.gateway.wait() == 0
        return time.monotonic() - began


@pytest.fixture
def traced(collecting: Collector, logs: Path, request: pytest.FixtureRequest) -> Iterator[Traced]:
    engine_port, internal_port = free_port(), free_port()
    name = request.node.name
    (logs / name).mkdir()
    (logs / name / ".env").write_text(
        f"OTEL_EXPORTER_OTLP_ENDPOINT={collecting.url}\nOTEL_SERVICE_NAME=mine\nMETRICS_PORT={internal_port}\n"
    )
    with (
        upstream(engine_port) as engine,
        running(GatewayProcess(name, free_port(), logs, ENGINE_URLS=f"http://127.0.0.1:{engine_port}")) as gateway,
    ):
        yield Traced(gateway, engine, f"http://127.0.0.1:{internal_port}")


def traceparent(engine: Upstream) -> str:
    (head,) = engine.heads
    (line,) = [line for line in head.splitlines() if line.lower().startswith("traceparent: ")]
    return line.partition(": ")[2]


def test_one_trace_from_the_caller_to_the_engine(traced: Traced, collecting: Collector) -> None:
    answer = traced.ask()
    assert answer.status_code == 200
    traced.stop()
    server, route, attempt = collecting.spans
    assert (server.trace_id, server.parent_id, server.kind) == (TRACE_ID, CALLERS, "server")
    assert server.resource["service.name"] == "mine"
    assert (route.name, route.parent_id) == ("route", server.span_id)
    assert (attempt.name, attempt.parent_id) == ("chat demo", server.span_id)
    assert f"http://{attempt.attributes['server.address']}:{attempt.attributes['server.port']}" == traced.engine.url
    assert traceparent(traced.engine) == f"00-{TRACE_ID}-{attempt.span_id}-01"
    assert abs(server.ended - time.time()) < 60
    assert f'"trace_id":"{TRACE_ID}","span_id":"{server.span_id}"' in traced.gateway.log.read_text()


@pytest.mark.parametrize("hangs", [True, False], ids=["hangs", "refuses"])
def test_a_collector_that_takes_nothing_holds_up_neither_requests_nor_the_stop(
    traced: Traced, collecting: Collector, hangs: bool
) -> None:
    collecting.status = 500
    if hangs:
        collecting.open.clear()
    assert {traced.ask().status_code for _ in range(20)} == {200}
    assert traced.stop() < 8
    assert collecting.spans == []


def test_machines_have_a_listener_of_their_own(traced: Traced) -> None:
    def page(path: str) -> httpx.Response:
        return httpx.get(f"{traced.internal}{path}", trust_env=False)

    assert (page("/livez").status_code, page("/readyz").status_code) == (200, 200)
    assert page("/v1/models").status_code == 404
    openmetrics = {"accept": "application/openmetrics-text"}
    traced.ask()
    assert "trace_id" not in page("/metrics").text
    metrics = httpx.get(f"{traced.internal}/metrics", headers=openmetrics, trust_env=False).text
    assert f'# {{trace_id="{TRACE_ID}"}}' in metrics
    assert comes_true(lambda: "gllm_event_loop_lag_seconds_count 0.0" not in page("/metrics").text, limit_s=5)
