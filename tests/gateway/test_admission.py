"""Who enters, who waits and who is refused; and that every place is given back, however a call ends."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineBusy, EngineError, EngineFailed, EngineForgot, EngineLost, EngineUnreachable, Outcome
from app.gateway.edge import Scope
from app.tenant import Tenant
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import JSON, Exchange
from tests.support.clock import FakeClock
from tests.support.until import until


class Hosts:
    """A door at which everybody is who they say."""

    def admit(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Tenant:
        return Tenant(headers.get(b"host", b"").decode())

    def admit_commander(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Tenant:
        return self.admit(scope, headers)


CHAT = "/v1/chat/completions"
ONE_AT_A_TIME = {"MAX_CONCURRENT_REQUESTS": 1}


class Crowd:
    """Requests on their way at once, by number; who was served is in the engine's own order."""

    def __init__(self, house: House, tasks: asyncio.TaskGroup) -> None:
        self.house = house
        self.tasks = tasks

    async def running(self, **fields: Any) -> Exchange:
        """One more, which has come as far as an engine."""
        calls = sum(engine.running for engine in self.house.engines.values())
        exchange = self.send(**fields)
        await until(lambda: sum(engine.running for engine in self.house.engines.values()) > calls)
        return exchange

    async def waiting(self, **fields: Any) -> Exchange:
        """One more, which stands in the line."""
        waiting = self.house.gateway.admission.waiting
        exchange = self.send(**fields)
        await until(lambda: self.house.gateway.admission.waiting > waiting)
        return exchange

    def send(self, headers: dict[bytes, bytes] | None = None, **fields: Any) -> Exchange:
        exchange = Exchange(CHAT, asking(**fields), headers=[*JSON, *(headers or {}).items()])
        self.tasks.create_task(exchange.run(self.house.gateway.app))
        return exchange


def stalling(**how: Any) -> Scripted:
    return Scripted(stall_at=0, **how)


async def test_who_finds_no_room_waits_and_is_served_in_turn(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(user="first")
        others = [await crowd.waiting(user=name) for name in ("second", "third")]
        assert house.engine.running == 1
        house.engine.go_on.set()
    assert [exchange.status for exchange in others] == [200, 200]
    assert [call.body.split(b'"')[-2] for call in house.engine.calls] == [b"first", b"second", b"third"]
    assert house.recorder.last.queued_s > 0


async def test_a_full_line_refuses_at_once_and_says_when_to_come_again(build: Build) -> None:
    house = await build(settings={**ONE_AT_A_TIME, "QUEUE_CAPACITY": 1}, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        await crowd.waiting()
        refused = await house.post(asking())
        house.engine.go_on.set()
    assert (refused.status, refused.error["code"], refused.error["type"]) == (503, "queue_full", "overloaded_error")
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-gllm-reason"] == "queue_full"
    assert len(house.engine.calls) == 2


async def test_a_tenant_that_fills_the_line_gives_up_places_to_others(build: Build) -> None:
    house = await build(settings={**ONE_AT_A_TIME, "QUEUE_CAPACITY": 2}, only=stalling())
    house.gateway.edge._door = Hosts()  # type: ignore[assignment]
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(headers={b"host": b"flood"})
        first = await crowd.waiting(headers={b"host": b"flood"})
        last = await crowd.waiting(headers={b"host": b"flood"})
        light = crowd.send(headers={b"host": b"light"})
        await until(lambda: last.ended)
        more = crowd.send(headers={b"host": b"light"})
        await until(lambda: more.ended)
        house.engine.go_on.set()
    assert (last.status, last.error["code"], last.headers["x-gllm-reason"]) == (503, "displaced", "displaced")
    assert (more.status, more.error["code"]) == (503, "queue_full"), "both hold a place now"
    assert (first.status, light.status) == (200, 200)


async def test_without_places_there_is_no_waiting(build: Build) -> None:
    house = await build(settings={**ONE_AT_A_TIME, "QUEUE_CAPACITY": 0}, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        await Crowd(house, tasks).running()
        assert (await house.post(asking())).status == 503
        house.engine.go_on.set()


async def test_without_backpressure_everybody_waits_in_the_order_of_coming(build: Build) -> None:
    settings = {**ONE_AT_A_TIME, "QUEUE_CAPACITY": 0, "ENABLE_BACKPRESSURE": False}
    house = await build(settings=settings, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        others = [await crowd.waiting() for _ in range(20)]
        house.engine.go_on.set()
    assert {exchange.status for exchange in others} == {200}


async def test_whose_turn_comes_too_late_to_finish_is_not_begun(build: Build) -> None:
    clock = FakeClock()
    house = await build(settings=ONE_AT_A_TIME, clock=clock, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        hurried = await crowd.waiting(headers={b"x-request-timeout-ms": b"9000"})
        patient = await crowd.waiting()
        clock.advance(5)
        house.engine.go_on.set()
    assert (hurried.status, hurried.error["code"]) == (503, "would_miss_deadline")
    assert patient.status == 200
    assert len(house.engine.calls) == 2


async def test_slots_are_those_of_all_replicas(build: Build) -> None:
    house = await build(settings={"MAX_CONCURRENT_REQUESTS": 2}, a=stalling(), b=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        for _ in range(4):
            await crowd.running()
        await crowd.waiting()
        assert [engine.running for engine in house.engines.values()] == [2, 2]
        house.engines["a"].go_on.set()
        await until(lambda: house.gateway.admission.waiting == 0)
        house.engines["b"].go_on.set()


async def test_a_client_that_hangs_up_while_waiting_leaves_its_place(build: Build) -> None:
    house = await build(settings={**ONE_AT_A_TIME, "QUEUE_CAPACITY": 1}, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        (await crowd.waiting()).hang_up()
        await until(lambda: len(house.recorder.records) == 1)
        assert house.recorder.last.outcome is Outcome.CLIENT_GONE
        assert house.gateway.admission.waiting == 0
        patient = await crowd.waiting()
        house.engine.go_on.set()
    assert patient.status == 200
    assert len(house.engine.calls) == 2


async def test_a_slot_given_to_one_who_hangs_up_at_that_moment_goes_on_to_the_next(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        runs = await crowd.running()
        unlucky, lucky = await crowd.waiting(), await crowd.waiting()
        runs.hang_up()
        unlucky.hang_up()
        house.engine.go_on.set()
    assert lucky.status == 200
    assert len(house.engine.calls) == 2


async def test_whose_time_runs_out_in_the_line_is_refused_and_never_dispatched(build: Build) -> None:
    clock = FakeClock()
    house = await build(settings=ONE_AT_A_TIME, clock=clock, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        late = await crowd.waiting(headers={b"x-request-timeout-ms": b"2000"})
        clock.advance(2)
        house.gateway.watch.sweep()
        await until(lambda: late.ended)
        house.engine.go_on.set()
    assert (late.status, late.error["code"]) == (503, "would_miss_deadline")
    assert late.headers["x-gllm-reason"] == "would_miss_deadline"
    assert len(house.engine.calls) == 1


async def test_who_would_wait_longer_than_it_has_time_is_refused_at_once(build: Build) -> None:
    clock = FakeClock()
    house = await build(settings=ONE_AT_A_TIME, clock=clock, only=stalling())
    async with asyncio.TaskGroup() as tasks:  # it learns that an answer takes ten seconds
        for _ in range(5):
            await Crowd(house, tasks).running()
            clock.advance(10)
            house.engine.go_on.set()
            await until(lambda: house.engine.running == 0)
            house.engine.go_on.clear()
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        hurried = Exchange(CHAT, asking(), headers=[*JSON, (b"x-request-timeout-ms", b"3000")])
        await hurried.run(house.gateway.app)
        patient = await crowd.waiting()
        house.engine.go_on.set()
    assert (hurried.status, hurried.error["code"]) == (503, "would_miss_deadline")
    assert 15 <= int(hurried.headers["retry-after"]) <= 20, "ten to wait and ten to be answered, less the three it has"
    assert patient.status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_time_limit_ends_the_engines_work_whatever_the_engine_does(build: Build, stream: bool) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        late = await Crowd(house, tasks).running(stream=stream, headers={b"x-request-timeout-ms": b"1500"})
        clock.advance(1.5)
        house.gateway.watch.sweep()
    assert (late.status, late.error["code"]) == (504, "deadline_exceeded")
    assert (house.engine.running, house.engine.aborted) == (0, 1)
    assert house.recorder.last.outcome is Outcome.DEADLINE


async def test_when_the_last_replica_dies_those_that_wait_hear_of_it_at_once(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        waits = [await crowd.waiting() for _ in range(3)]
        house.gateway.fleet.failed(house.gateway.fleet.replicas[0], "EngineUnreachable")
        await until(lambda: all(exchange.ended for exchange in waits))
        house.engine.go_on.set()
    assert {(exchange.status, exchange.error["code"]) for exchange in waits} == {(503, "no_replica")}


async def test_a_replica_that_comes_serves_those_that_wait(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, a=stalling(), b=stalling())
    b = house.gateway.fleet.replicas[1]
    house.gateway.fleet.failed(b, "EngineUnreachable")
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        await crowd.waiting()
        house.gateway.fleet.answered(b, {"demo": 2_048})
        await until(lambda: house.engines["b"].running == 1)
        for engine in house.engines.values():
            engine.go_on.set()


async def test_whose_replica_failed_goes_before_those_that_wait_for_the_first_time(build: Build) -> None:
    settings = {**ONE_AT_A_TIME, "ROUTING_POLICY": "round_robin"}
    sick = Scripted(stall_at=0, break_at=0, break_with=EngineUnreachable)
    well = stalling()
    house = await build(settings=settings, sick=sick, well=well)
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(user="one")
        await crowd.running(user="two")
        await crowd.waiting(user="three")
        sick.go_on.set()
        await until(lambda: house.gateway.admission.waiting == 2)
        well.go_on.set()
    assert [call.body.split(b'"')[-2] for call in well.calls] == [b"two", b"one", b"three"]


async def test_a_replica_that_fails_every_call_gets_a_pause_and_the_last_one_says_so(build: Build) -> None:
    clock = FakeClock()
    settings = {"CIRCUIT_FAILURES": 3, "CIRCUIT_PAUSE": 5}
    house = await build(settings=settings, clock=clock, only=Scripted(refuse_with=EngineFailed(), refusals=3))
    statuses = [(await house.post(asking())).status for _ in range(3)]
    assert statuses == [502, 502, 502]
    refused = await house.post(asking())
    assert (refused.status, refused.error["code"]) == (503, "circuit_open")
    assert refused.headers["x-gllm-reason"] == "circuit_open"
    assert refused.headers["retry-after"] == "5"
    assert len(house.engine.calls) == 3
    clock.advance(5)
    assert (await house.post(asking())).status == 200
    assert (await house.post(asking())).status == 200


async def test_a_burst_of_failures_is_not_answered_by_a_burst_of_retries(build: Build) -> None:
    clock = FakeClock()
    settings = {"RETRY_BUDGET": 0.1, "CIRCUIT_FAILURES": 1_000}
    sick = [Scripted(refuse_with=EngineFailed()) for _ in range(2)]
    house = await build(settings=settings, clock=clock, a=sick[0], b=sick[1])
    for _ in range(200):
        assert (await house.post(asking())).status == 502
        clock.advance(0.001)
    assert sum(len(engine.calls) for engine in sick) <= 200 * 1.1 + 12


@pytest.mark.parametrize("nothing_done", [EngineUnreachable, EngineLost, EngineForgot])
async def test_away_from_a_replica_that_is_gone_all_may_go_whatever_has_been_retried_before(
    build: Build, nothing_done: type[EngineError]
) -> None:
    """A fleet whose engines are busy has spent its budget when one of them dies."""
    sick = Scripted(refuse_with=EngineBusy())
    house = await build(settings={"CIRCUIT_FAILURES": 1_000, "ROUTING_POLICY": "round_robin"}, a=sick, b=Scripted())
    spent = 0
    while (await house.post(asking())).status == 200:
        spent += 1
    assert spent > 9
    sick.refuse_with = nothing_done()
    assert {(await house.post(asking())).status for _ in range(40)} == {200}


async def test_where_retries_are_off_nobody_is_moved(build: Build) -> None:
    settings = {"RETRY_BUDGET": 0, "ROUTING_POLICY": "round_robin"}
    house = await build(settings=settings, a=Scripted(refuse_with=EngineLost()), b=Scripted())
    assert {(await house.post(asking())).status for _ in range(2)} == {200, 502}


async def test_a_client_is_told_not_to_retry_what_was_retried_here(build: Build) -> None:
    sick = {name: Scripted(refuse_with=EngineUnreachable()) for name in "abc"}
    house = await build(**sick)
    done = await house.post(asking())
    assert (done.status, done.headers["x-should-retry"]) == (502, "false")


# --- draining -----------------------------------------------------------------------------------------------------


async def test_while_draining_what_is_inside_ends_well_and_newcomers_are_refused(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    admission = house.gateway.admission
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        inside = [await crowd.running(stream=True), await crowd.waiting()]
        admission.drain(30)
        refused = await house.post(asking())
        ready = await house.get("/readyz")
        emptied = tasks.create_task(admission.empty())
        await asyncio.sleep(0)
        assert not emptied.done()
        house.engine.go_on.set()
    assert (refused.status, refused.error["code"]) == (503, "draining")
    assert refused.headers["connection"] == "close"
    assert refused.headers["retry-after"] == "1"
    assert ready.status == 503
    assert [exchange.status for exchange in inside] == [200, 200]
    assert inside[0].events()[-1] == "[DONE]"


async def test_what_a_drain_cannot_wait_for_is_ended_with_the_reason(build: Build) -> None:
    clock = FakeClock()
    house = await build(settings={"MAX_CONCURRENT_REQUESTS": 2}, clock=clock, only=Scripted(stall_at=2))
    admission = house.gateway.admission
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        stream = await crowd.running(stream=True)
        whole = await crowd.running(stream=True)
        await until(lambda: len(stream.blocks) == 2)
        waits = await crowd.waiting()
        admission.drain(30)
        clock.advance(30)
        house.gateway.watch.sweep()
        await admission.empty()
    assert stream.events()[-1]["error"]["code"] == "draining"
    assert "[DONE]" not in stream.events()
    assert stream.ended
    assert whole.events()[-1]["error"]["code"] == "draining"
    assert (waits.status, waits.error["code"]) == (503, "draining")
    assert house.recorder.last.outcome is Outcome.DRAINING
    assert house.engine.aborted == 2


# --- second tries and moving limits -------------------------------------------------------------------------------


async def test_a_stream_that_is_unusually_slow_to_begin_is_begun_elsewhere_and_paid_once(build: Build) -> None:
    settings = {"HEDGE_SHARE": 0.1, "ROUTING_POLICY": "round_robin"}
    house = await build(settings=settings, a=Scripted(), b=Scripted())
    for _ in range(60):  # it learns what is usual
        await house.post(asking(stream=True))
    house.engines["a"].stall_at = 0
    done = [await house.post(asking(stream=True)) for _ in range(2)]
    assert [exchange.status for exchange in done] == [200, 200]
    assert {exchange.headers["x-gllm-replica"] for exchange in done} == {"b"}
    assert all(exchange.text() == "Hello, world." for exchange in done)
    assert house.engines["a"].aborted == 1
    assert [record.attempts for record in house.recorder.records[-2:]] == [1, 1]


async def test_a_limit_that_adapts_grows_while_the_engine_keeps_up_and_somebody_waits(build: Build) -> None:
    settings = {**ONE_AT_A_TIME, "ADAPTIVE_CONCURRENCY": True}
    house = await build(settings=settings, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        for _ in range(3):
            await crowd.waiting()
        for served in (2, 3, 4):
            await house.gateway.prober.round()
            await until(lambda expected=served: house.engine.running == expected)  # type: ignore[misc]
        await house.gateway.prober.round()
        assert house.gateway.fleet.slots("demo") == 4, "nobody waits, so it needs no more"
        house.engine.go_on.set()


async def test_a_limit_that_is_not_to_adapt_stays(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        await crowd.waiting()
        await house.gateway.prober.round()
        assert house.engine.running == 1
        house.engine.go_on.set()


async def test_the_line_and_the_slots_are_measured(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        await crowd.waiting()
        page = (await house.get("/metrics")).body.decode()
        house.engine.go_on.set()
    for line in (
        'gllm_queue_requests{model="demo"} 1.0',
        "gllm_slots_taken 1.0",
        "gllm_slots 1.0",
        "gllm_keyed_runs 0.0",
    ):
        assert line in page
    assert 'gllm_queue_wait_seconds_count{model="demo"} 1.0' in (await house.get("/metrics")).body.decode()
