"""A request from its head to its end, and everything that was taken given back on each way out."""

import asyncio
import json
from collections.abc import Callable

import pytest

from app.engines.scripted import Scripted
from app.errors import (
    ContextTooLong,
    EngineBroken,
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineForgot,
    EngineNonsense,
    EngineRefused,
    EngineStalled,
    EngineUnreachable,
    Outcome,
)
from app.generation import Usage
from app.telemetry.base import EngineErrorSeen
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import Exchange
from tests.support.until import until


async def test_a_whole_answer_comes_back_as_the_engine_gave_it(house: House) -> None:
    done = await house.post(asking())
    assert done.status == 200
    assert done.headers["content-type"] == "application/json"
    assert int(done.headers["content-length"]) == len(done.body)
    assert done.json()["choices"][0]["message"]["content"] == "Hello, world."
    assert (done.headers["x-gllm-replica"], done.headers["x-gllm-attempts"]) == ("only", "1")
    assert house.recorder.last.outcome is Outcome.OK
    assert house.recorder.last.usage == Usage(7, 4)


async def test_a_stream_comes_in_whole_events_and_ends_with_done(house: House) -> None:
    done = await house.post(asking(stream=True))
    assert done.headers["content-type"].startswith("text/event-stream")
    assert all(block.endswith(b"\n\n") for block in done.blocks)
    assert done.text() == "Hello, world."
    assert done.events()[-1] == "[DONE]"
    assert done.ended


async def test_an_unchanged_body_is_forwarded_byte_for_byte(house: House) -> None:
    body = b'{ "model":"demo",\n "messages" : [{"role":"user","content":"\\u0048i \xc3\xa9"}], "temperature":1.50 }'
    await house.post(body)
    assert house.engine.calls[0].body == body


async def test_every_stream_is_counted_and_the_count_is_kept_from_who_did_not_ask(house: House) -> None:
    done = await house.post(asking(stream=True))
    assert house.recorder.last.usage == Usage(7, 4)
    assert b"usage" not in done.body
    assert b'"include_usage":true' in house.engine.calls[0].body


async def test_who_asks_for_usage_gets_it(house: House) -> None:
    body = asking(stream=True, stream_options={"include_usage": True})
    done = await house.post(body)
    assert done.events()[-2]["usage"]["completion_tokens"] == 4
    assert house.recorder.last.usage == Usage(7, 4)


async def test_who_declines_usage_is_counted_all_the_same(house: House) -> None:
    done = await house.post(asking(stream=True, stream_options={"include_usage": False}))
    assert b"usage" not in done.body
    assert house.recorder.last.usage == Usage(7, 4)


async def test_the_only_model_need_not_be_named(house: House) -> None:
    body = asking()
    del body["model"]
    assert (await house.post(body)).status == 200
    assert b'"model":"demo"' in house.engine.calls[0].body


async def test_with_several_models_one_must_be_named(build: Build) -> None:
    house = await build(a=Scripted(serves={"x": None}), b=Scripted(serves={"y": None}))
    body = asking()
    del body["model"]
    done = await house.post(body)
    assert (done.status, done.error["code"], done.error["param"]) == (404, "model_not_found", "model")


async def test_a_request_goes_to_a_replica_that_serves_its_model(build: Build) -> None:
    house = await build(a=Scripted(serves={"x": None}), b=Scripted(serves={"y": None}))
    assert (await house.post(asking(model="y"))).headers["x-gllm-replica"] == "b"
    assert (await house.post(asking(model="x"))).headers["x-gllm-replica"] == "a"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_byte_is_tried_on_another_replica(build: Build, stream: bool) -> None:
    sick = Scripted(refuse_with=EngineFailed())
    house = await build(settings={"ROUTING_POLICY": "round_robin"}, sick=sick, well=Scripted())
    done = await house.post(asking(stream=stream))
    assert (done.status, done.headers["x-gllm-replica"], done.headers["x-gllm-attempts"]) == (200, "well", "2")
    assert house.recorder.events[-1] == EngineErrorSeen(house.recorder.last.id, "sick", "EngineFailed", "", True)


@pytest.mark.parametrize(
    ("error", "status", "code", "outcome"),
    [
        (EngineFailed(), 502, "engine_failed", Outcome.UPSTREAM_FAILED),
        (EngineNonsense(), 502, "engine_nonsense", Outcome.UPSTREAM_FAILED),
        (EngineUnreachable(), 502, "engine_unreachable", Outcome.UPSTREAM_FAILED),
        (EngineBusy(retry_after=7), 503, "engine_busy", Outcome.QUEUE_FULL),
        (EngineForgot(retry_after=1), 503, "model_gone", Outcome.UPSTREAM_FAILED),
        (EngineRefused(param="tools"), 400, "engine_refused", Outcome.CLIENT_ERROR),
        (ContextTooLong(param="messages"), 400, "context_length_exceeded", Outcome.CLIENT_ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, EngineError) else "",
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_that_no_replica_mends_is_an_honest_error(
    build: Build, error: EngineError, status: int, code: str, outcome: Outcome, stream: bool
) -> None:
    house = await build(only=Scripted(refuse_with=error))
    done = await house.post(asking(stream=stream))
    assert (done.status, done.error["code"], done.error["param"]) == (status, code, error.param)
    assert house.recorder.last.outcome is outcome


@pytest.mark.parametrize("error", [EngineBusy, EngineForgot])
async def test_a_replica_that_is_well_is_not_given_a_pause_for_what_it_declines(
    build: Build, error: type[EngineError]
) -> None:
    house = await build(settings={"CIRCUIT_FAILURES": 1}, only=Scripted(refuse_with=error(), refusals=3))
    for _ in range(3):
        assert (await house.post(asking())).status == 503
    assert (await house.post(asking())).status == 200


@pytest.mark.parametrize(("after", "told"), [(0.1, "1"), (1, "1"), (1.2, "2"), (2, "2"), (7, "7")])
async def test_backpressure_says_when_to_come_back(build: Build, after: float, told: str) -> None:
    house = await build(only=Scripted(refuse_with=EngineBusy(retry_after=after)))
    done = await house.post(asking())
    assert (done.headers["retry-after"], done.headers["x-gllm-reason"]) == (told, "engine_busy")


async def test_what_the_client_did_wrong_is_not_tried_again(build: Build) -> None:
    house = await build(a=Scripted(refuse_with=EngineRefused()), b=Scripted(refuse_with=EngineRefused()))
    await house.post(asking())
    assert sum(len(engine.calls) for engine in house.engines.values()) == 1


async def test_attempts_are_bounded(build: Build) -> None:
    house = await build(**{name: Scripted(refuse_with=EngineFailed()) for name in "abcdef"})
    await house.post(asking())
    assert sum(len(engine.calls) for engine in house.engines.values()) == 3


@pytest.mark.parametrize("error", [EngineBroken, EngineStalled])
async def test_after_the_first_byte_a_failure_is_one_error_event_and_no_done(
    build: Build, error: type[EngineError]
) -> None:
    house = await build(only=Scripted(break_at=2, break_with=error), other=Scripted(serves={}))
    done = await house.post(asking(stream=True))
    assert done.status == 200
    assert set(done.events()[-1]) == {"error"}
    assert "[DONE]" not in done.events()
    assert done.ended
    assert house.recorder.last.outcome is Outcome.INTERRUPTED


async def test_where_events_are_numbered_the_error_has_the_next_number(build: Build) -> None:
    house = await build(only=Scripted(break_at=2), other=Scripted(serves={}))
    done = await house.post({"model": "demo", "input": "Hello", "stream": True}, path="/v1/responses")
    last = done.body.decode().strip().split("\n\n")[-1].removeprefix("event: error\ndata: ")
    assert json.loads(last)["sequence_number"] == done.body.count(b"\n\n") - 1 == 2


@pytest.mark.parametrize("error", [EngineBroken, EngineStalled])
async def test_nothing_follows_done_whatever_its_engine_does_then(build: Build, error: type[EngineError]) -> None:
    events = 8
    house = await build(only=Scripted(break_at=events, break_with=error))
    done = await house.post(asking(stream=True))
    assert done.events()[-1] == "[DONE]"
    assert done.ended
    assert house.recorder.last.outcome is Outcome.OK


async def test_a_stream_without_its_end_is_interrupted(build: Build) -> None:
    house = await build(settings={"TAKEOVER": False}, only=Scripted(ends_properly=False))
    done = await house.post(asking(stream=True))
    assert done.events()[-1]["error"]["code"] == "engine_interrupted"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hang_up_while_the_engine_works_aborts_it(build: Build, stream: bool) -> None:
    house = await build(only=Scripted(stall_at=0))
    exchange = Exchange("/v1/chat/completions", asking(stream=stream))
    running = asyncio.create_task(exchange.run(house.gateway.app))
    await until(lambda: house.engine.running == 1)
    exchange.hang_up()
    await running
    assert house.engine.aborted == 1
    assert house.recorder.last.outcome is Outcome.CLIENT_GONE
    assert house.recorder.last.status == 499


@pytest.mark.parametrize("bytes_read", range(0, 900, 75))
async def test_a_hang_up_at_any_byte_gives_everything_back(build: Build, bytes_read: int) -> None:
    house = await build(only=Scripted(words=tuple("abcdefgh")))
    done = await house.post(asking(stream=True), hang_up_after=bytes_read)
    assert done.ended or house.recorder.last.outcome is Outcome.CLIENT_GONE
    assert house.engine.running == 0


async def test_a_reader_that_stops_reading_is_cut_off(build: Build) -> None:
    house = await build(settings={"WRITE_TIMEOUT": 5})
    exchange = Exchange("/v1/chat/completions", asking(stream=True), stop_reading_after=1)
    running = asyncio.create_task(exchange.run(house.gateway.app))
    await until(lambda: bool(exchange.blocks))
    house.gateway.watch.clock = lambda: 1e12
    house.gateway.watch.sweep()
    await running
    assert house.recorder.last.outcome is Outcome.CLIENT_GONE
    assert house.recorder.last.error == "ClientStalled"
    assert house.engine.aborted == 1


@pytest.mark.parametrize("reads", [0, 1], ids=["nothing", "all but the end"])
async def test_a_reader_that_does_not_even_take_its_error_is_cut_off(build: Build, reads: int) -> None:
    house = await build(only=Scripted(refuse_with=EngineFailed()))
    exchange = Exchange("/v1/chat/completions", asking(), stop_reading_after=reads)
    await _cut_off(
        house,
        asyncio.create_task(exchange.run(house.gateway.app)),
        lambda: len(exchange.body) >= reads and exchange.status == 502,
    )


async def test_a_client_that_sends_no_body_and_reads_no_answer_is_cut_off(build: Build) -> None:
    house = await build()
    exchange = Exchange("/v1/chat/completions", body_parts=[], stop_reading_after=0)
    running = asyncio.create_task(exchange.run(house.gateway.app))
    await until(lambda: len(house.gateway.watch) == 1)
    house.gateway.watch.clock = lambda: 1e9
    house.gateway.watch.sweep()
    await _cut_off(house, running, lambda: exchange.status == 408)


async def _cut_off(house: House, running: "asyncio.Task[Exchange]", stalled: Callable[[], bool]) -> None:
    await until(stalled)
    house.gateway.watch.clock = lambda: 1e12
    house.gateway.watch.sweep()
    await running
    assert house.recorder.last.outcome is Outcome.CLIENT_GONE


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_server_ends_by_force_is_not_recorded_as_well(build: Build, stream: bool) -> None:
    house = await build(only=Scripted(stall_at=1 if stream else 0))
    exchange = Exchange("/v1/chat/completions", asking(stream=stream))
    running = asyncio.create_task(exchange.run(house.gateway.app))
    await until(lambda: bool(exchange.blocks) if stream else house.engine.running == 1)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert (house.recorder.last.outcome, house.recorder.last.status) == (Outcome.DRAINING, 200 if stream else 503)


async def test_a_cancel_from_outside_stays_a_cancel(build: Build) -> None:
    house = await build(only=Scripted(stall_at=0))
    running = asyncio.create_task(house.post(asking()))
    await until(lambda: house.engine.running == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert house.engine.aborted == 1


async def test_while_draining_new_work_is_refused_and_running_work_finishes(build: Build) -> None:
    house = await build(only=Scripted(stall_at=1))
    running = asyncio.create_task(house.post(asking(stream=True)))
    await until(lambda: house.engine.running == 1)
    house.gateway.admission.draining = True
    refused = await house.post(asking())
    assert (refused.status, refused.headers["x-gllm-reason"]) == (503, "draining")
    assert (await house.get("/readyz")).status == 503
    house.engine.go_on.set()
    assert (await running).text() == "Hello, world."
    await asyncio.wait_for(house.gateway.admission.empty(), 1)


async def test_an_unforeseen_defect_is_a_500_that_says_nothing(build: Build) -> None:
    house = await build(only=Scripted(script=lambda call: 1 / 0))  # type: ignore[arg-type,return-value]
    done = await house.post(asking())
    assert (done.status, done.error["code"]) == (500, "internal_error")
    assert "division" not in done.body.decode()
    assert (await house.get("/livez")).status == 200


async def test_defaults_of_the_operator_fill_what_a_request_leaves_out(build: Build) -> None:
    house = await build(settings={"MAX_TOKENS": 64, "TEMPERATURE": 0.5})
    await house.post(asking())
    await house.post(asking(max_completion_tokens=5, temperature=0))
    filled, own = (call.body for call in house.engine.calls)
    assert b'"max_tokens":64' in filled
    assert b'"temperature":0.5' in filled
    assert b"64" not in own
    assert b"0.5" not in own


async def test_no_replica_left_is_503_and_the_model_stays_known(build: Build) -> None:
    house = await build(only=Scripted(refuse_with=EngineUnreachable()))
    assert (await house.post(asking())).status == 502
    done = await house.post(asking())
    assert (done.status, done.headers["x-gllm-reason"], done.headers["retry-after"]) == (503, "no_replica", "1")
    assert (await house.get("/v1/models")).json()["data"][0]["id"] == "demo"
    await house.gateway.prober.round()
    house.engine.refuse_with = None
    assert (await house.post(asking())).status == 200
