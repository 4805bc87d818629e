"""Traces of real requests, as a collector gets them over HTTP."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineFailed
from app.settings import BadSetting
from app.telemetry.base import CollectorChanged
from app.telemetry.tracing.tracer import Tracer
from tests.gateway.conftest import House, asking
from tests.gateway.conftest import build as build  # its fixture
from tests.support.asgi import JSON, Exchange
from tests.support.collector import Collector, Seen, collector
from tests.support.until import until

TRACE_ID, CALLERS = "a" * 32, "b" * 16
TRACE = (b"traceparent", f"00-{TRACE_ID}-{CALLERS}-01".encode())
UNKEPT = (b"traceparent", f"00-{TRACE_ID}-{CALLERS}-00".encode())

BuildTraced = Callable[..., Awaitable[House]]


@pytest.fixture
def collecting() -> Iterator[Collector]:
    with collector() as one:
        yield one


@pytest.fixture
async def traced(build: Any, collecting: Collector) -> Any:
    """`await traced({"OTEL_TRACES_SAMPLER": "always_off"}, a=Scripted(…))`"""
    houses: list[House] = []

    async def make(settings: dict[str, str] | None = None, **engines: Scripted) -> House:
        given = {"OTEL_EXPORTER_OTLP_ENDPOINT": collecting.url, "ENGINE_TYPE": "vllm", **(settings or {})}
        houses.append(await build(given, **engines))
        return houses[-1]

    yield make
    for house in houses:
        tracer_of(house).close(0)


def tracer_of(house: House) -> Tracer:
    assert house.gateway.observers.tracer is not None
    return house.gateway.observers.tracer


async def told(house: House, collecting: Collector) -> list[Seen]:
    await asyncio.to_thread(tracer_of(house).close, 5)
    return collecting.spans


def by_id(spans: list[Seen]) -> dict[str, Seen]:
    return {span.span_id: span for span in spans}


async def test_one_trace_from_the_caller_through_the_gateway_to_the_engine(
    traced: BuildTraced, collecting: Collector
) -> None:
    house = await traced()
    headers = [*JSON, TRACE, (b"tracestate", b"theirs=1")]
    answer = await house.post(asking(stream=True), headers=headers)
    assert answer.status == 200
    (call,) = house.engine.calls
    spans = await told(house, collecting)
    server, route, attempt, stream = spans
    assert [span.name for span in spans] == ["POST /v1/chat/completions", "route", "chat demo", "stream"]
    assert [span.kind for span in spans] == ["server", "internal", "client", "internal"]
    assert {span.trace_id for span in spans} == {TRACE_ID}
    assert [span.parent_id for span in spans] == [CALLERS, server.span_id, server.span_id, attempt.span_id]
    assert (route.attributes["gllm.routed_by"], route.attributes["gllm.candidates"]) == ("only", 1)
    assert server.began < route.began <= route.ended == attempt.began
    assert (call.traceparent, call.tracestate) == (f"00-{TRACE_ID}-{attempt.span_id}-01", "theirs=1")
    assert server.state == "theirs=1"
    assert server.began <= attempt.began <= server.events["first_byte"] == stream.began
    assert server.attributes["gllm.request_id"] == answer.headers["x-request-id"]
    assert attempt.attributes["gen_ai.provider.name"] == "vllm"
    assert attempt.attributes["gen_ai.usage.output_tokens"] == 4
    assert server.resource["service.name"] == "gllm"


async def test_without_a_caller_a_trace_begins_here(traced: BuildTraced, collecting: Collector) -> None:
    house = await traced()
    for headers in (JSON, [*JSON, (b"traceparent", b"00-nonsense")]):
        await house.post(asking(), headers=headers)
    servers = [span for span in await told(house, collecting) if span.kind == "server"]
    assert [span.parent_id for span in servers] == ["", ""]
    assert len({span.trace_id for span in servers}) == 2
    assert [call.traceparent.split("-")[1] for call in house.engine.calls if call.traceparent] == [
        span.trace_id for span in servers
    ]


async def test_each_attempt_is_the_parent_of_its_own_engines_work(traced: BuildTraced, collecting: Collector) -> None:
    failing, well = Scripted(refuse_with=EngineFailed(detail="/secret/path")), Scripted()
    house = await traced(a=failing, b=well)
    while not failing.calls:  # which one is first is the policy's
        assert (await house.post(asking())).status == 200
    spans = await told(house, collecting)
    (failed,) = [span for span in spans if span.attributes.get("gllm.replica") == "a" and span.kind == "client"]
    (again,) = [span for span in spans if span.attributes.get("gllm.attempt") == 2]
    assert failed.failed
    assert failed.attributes["error.type"] == "EngineFailed"
    assert again.trace_id == failed.trace_id
    assert again.parent_id == failed.parent_id
    assert failing.calls[0].traceparent == f"00-{failed.trace_id}-{failed.span_id}-01"
    assert well.calls[-1].traceparent == f"00-{again.trace_id}-{again.span_id}-01"
    assert not by_id(spans)[again.parent_id].failed
    assert b"/secret/path" not in b"".join(collecting.payloads)


async def test_two_tries_at_once_are_told_apart(traced: BuildTraced, collecting: Collector) -> None:
    slow, prompt = Scripted(), Scripted()
    settings = {"HEDGE_SHARE": "0.2", "ROUTING_POLICY": "round_robin", "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    house = await traced(settings, a=slow, b=prompt)
    for _ in range(60):  # it learns what is usual
        await house.post(asking(stream=True))
    slow.stall_at = 0
    assert (await house.post(asking(stream=True), headers=[*JSON, TRACE])).headers["x-gllm-replica"] == "b"
    server, outrun, won, stream = [span for span in await told(house, collecting) if span.name != "route"]
    assert (outrun.attributes["gllm.replica"], outrun.attributes["gllm.outrun"]) == ("a", True)
    assert (won.attributes["gllm.replica"], "gllm.outrun" in won.attributes) == ("b", False)
    assert outrun.parent_id == won.parent_id == server.span_id
    assert stream.parent_id == won.span_id
    assert outrun.ended < won.ended
    assert slow.calls[-1].traceparent == f"00-{TRACE_ID}-{outrun.span_id}-01"
    assert prompt.calls[-1].traceparent == f"00-{TRACE_ID}-{won.span_id}-01"


async def test_who_waited_for_a_turn_has_a_span_for_it(traced: BuildTraced, collecting: Collector) -> None:
    engine = Scripted(stall_at=0)
    house = await traced({"MAX_CONCURRENT_REQUESTS": "1"}, a=engine)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(house.post(asking()))
        await until(lambda: engine.running == 1)
        tasks.create_task(house.post(asking(), headers=[*JSON, TRACE]))
        await until(lambda: house.gateway.admission.waiting == 1)
        engine.go_on.set()
    spans = await told(house, collecting)
    (queue,) = [span for span in spans if span.name == "queue"]
    parent = by_id(spans)[queue.parent_id]
    assert (queue.trace_id, parent.kind) == (TRACE_ID, "server")
    assert parent.began <= queue.began < queue.ended <= parent.ended


async def test_a_request_with_a_key_has_the_attempts_of_its_run_and_its_twin_has_none(
    traced: BuildTraced, collecting: Collector
) -> None:
    house = await traced()
    keyed = [*JSON, (b"idempotency-key", b"k")]
    for _ in range(2):
        assert (await house.post(asking(stream=True), headers=keyed)).status == 200
    spans = await told(house, collecting)
    first, second = [span for span in spans if span.kind == "server"]
    assert [span.name for span in spans if span.trace_id == first.trace_id][1:] == ["route", "chat demo", "stream"]
    assert [span.name for span in spans if span.trace_id == second.trace_id][1:] == ["stream"]
    assert second.attributes["gllm.replayed"] is True


@pytest.mark.parametrize(
    ("sampler", "header", "kept"),
    [
        ("parentbased_always_on", TRACE, True),
        ("parentbased_always_on", UNKEPT, False),
        ("parentbased_always_off", TRACE, True),
        ("parentbased_always_off", None, False),
        ("always_off", TRACE, False),
        ("always_on", UNKEPT, True),
    ],
)
async def test_what_is_kept_is_the_callers_word_or_the_samplers(
    traced: BuildTraced, collecting: Collector, sampler: str, header: tuple[bytes, bytes] | None, kept: bool
) -> None:
    house = await traced({"OTEL_TRACES_SAMPLER": sampler})
    await house.post(asking(), headers=[*JSON, header] if header else JSON)
    (call,) = house.engine.calls
    assert call.traceparent is not None
    assert call.traceparent.endswith("-01" if kept else "-00")
    assert CALLERS not in call.traceparent
    assert bool(await told(house, collecting)) is kept


async def test_what_is_refused_before_it_is_a_call_is_told_too(traced: BuildTraced, collecting: Collector) -> None:
    house = await traced()
    await house.post(b"{")
    await house.post(asking(model="unknown\x00model"))
    bad, unknown = await told(house, collecting)
    assert (bad.attributes["http.response.status_code"], bad.attributes["error.type"]) == (400, "InvalidRequest")
    assert unknown.attributes["error.type"] == "UnknownModel"
    assert "gen_ai.request.model" not in unknown.attributes
    assert not unknown.failed


async def test_what_fastapi_serves_is_told_by_its_instrumentation(traced: BuildTraced, collecting: Collector) -> None:
    house = await traced()
    answer = await house.get("/v1/models", headers=[TRACE])
    for path in ("/livez", "/readyz", "/health", "/metrics"):
        await house.get(path)
    (span,) = await told(house, collecting)
    assert (span.name, span.kind, span.trace_id, span.parent_id) == ("GET /v1/models", "server", TRACE_ID, CALLERS)
    assert span.attributes["gllm.request_id"] == answer.headers["x-request-id"]
    assert span.attributes["http.response.status_code"] == 200
    (seen,) = [record.trace for record in house.recorder.records if record.trace is not None]
    assert (seen.trace_id, seen.span_id) == (span.trace_id, span.span_id)


async def test_neither_prompts_nor_keys_nor_answers_are_told(traced: BuildTraced, collecting: Collector) -> None:
    house = await traced(a=Scripted(words=("secret-answer",)))
    headers = [
        *JSON,
        (b"authorization", b"Bearer secret-key"),
        (b"idempotency-key", b"secret-idempotency"),
        (b"x-session-id", b"secret-session"),
    ]
    prompt = [{"role": "user", "content": "secret-prompt"}]
    assert (await house.post(asking(messages=prompt, user="secret-user"), headers=headers)).status == 200
    query = Exchange("/v1/models", method="GET", headers=headers[1:])
    query.scope["query_string"] = b"key=secret-query"
    assert (await query.run(house.gateway.app)).status == 200
    await told(house, collecting)
    assert collecting.payloads
    assert b"secret" not in b"".join(collecting.payloads)


async def test_a_dead_collector_costs_requests_nothing_and_is_told_once(
    traced: BuildTraced, collecting: Collector
) -> None:
    collecting.status = 401
    house = await traced({"OTEL_BSP_SCHEDULE_DELAY": "10"})
    for _ in range(3):
        assert (await house.post(asking())).status == 200
        sent = collecting.asked
        while collecting.asked == sent:
            await asyncio.sleep(0.001)
    await told(house, collecting)
    (change,) = [event for event in house.recorder.events if isinstance(event, CollectorChanged)]
    assert not change.available
    assert "401" in change.reason
    assert house.gateway.observers.metrics is not None
    assert b"gllm_spans_dropped_total 9.0" in house.gateway.observers.metrics.page()[1]


async def test_a_hanging_collector_costs_requests_nothing(traced: BuildTraced, collecting: Collector) -> None:
    collecting.open.clear()
    few = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    house = await traced(few)
    assert (await house.post(asking())).status == 200
    while not collecting.asked:
        await asyncio.sleep(0.001)
    for _ in range(10):
        assert (await house.post(asking())).status == 200
    assert house.gateway.observers.metrics is not None
    assert b"gllm_spans_dropped_total 18.0" in house.gateway.observers.metrics.page()[1]
    collecting.open.set()
    assert len(await told(house, collecting)) == 3 * 5


async def test_opentelemetrys_own_variables_hold_wherever_they_stand(
    traced: BuildTraced, collecting: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "of-somebody-else")
    before = dict(os.environ)
    house = await traced(
        {
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=mine,deployment.environment.name=test",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-token=letmein",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        }
    )
    assert dict(os.environ) == before
    await house.post(asking())
    server = (await told(house, collecting))[0]
    assert server.resource["service.name"] == "mine"
    assert server.resource["deployment.environment.name"] == "test"
    assert collecting.headers["x-token"] == "letmein"


async def test_without_the_extra_the_start_says_what_to_install(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadSetting, match=r"^Sending traces takes: pip install 'gllm\[tracing\]'\. Or set "):
        await build({"ENABLE_TRACING": "true"})


async def test_where_tracing_is_off_the_engine_gets_the_callers_place(build: Any) -> None:
    house = await build()
    await house.post(asking(), headers=[*JSON, TRACE, (b"tracestate", b"theirs=1")])
    (call,) = house.engine.calls
    assert (call.traceparent, call.tracestate) == (TRACE[1].decode(), "theirs=1")
    assert house.recorder.last.trace is None
