"""Calls for a model that is being loaded, or that makes way for another one: they wait, or hear honestly that they need
not (docs/adr/0018)."""

import asyncio

from app.cluster.fleet import Prospect
from app.engines.scripted import Scripted
from app.errors import Outcome
from tests.gateway.conftest import Build
from tests.gateway.test_admission import ONE_AT_A_TIME, Crowd, stalling
from tests.support.clock import FakeClock
from tests.support.until import until

COMES = Prospect(("next",), coming=True, slots=4)


async def test_calls_wait_for_a_model_that_loads_and_are_served_in_turn_when_it_is_there(build: Build) -> None:
    house = await build(only=Scripted())
    fleet = house.gateway.fleet
    fleet.foretell("w1", COMES)
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        waits = [await crowd.waiting(model="next") for _ in range(5)]
        assert (await house.get("/v1/models")).json()["data"][0]["id"] == "demo"
        fleet.answered(fleet.replicas[0], {"demo": 2_048, "next": 2_048})
    assert [each.status for each in waits] == [200] * 5
    assert all(each.queued_s > 0 for each in house.recorder.records if each.model == "next")


async def test_who_waits_for_one_that_then_fails_hears_of_it_at_once(build: Build) -> None:
    house = await build(only=Scripted())
    house.gateway.fleet.foretell("w1", COMES)
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        waits = [await crowd.waiting(model="next") for _ in range(3)]
        house.gateway.fleet.foretell("w1", Prospect(("next",), coming=False))
    assert {(each.status, each.error["code"], each.headers["retry-after"]) for each in waits} == {
        (503, "no_replica", "1")
    }


async def test_whose_time_ends_before_it_is_there_hears_that_it_is_still_being_loaded(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted())
    house.gateway.fleet.foretell("w1", COMES)
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        late = await crowd.waiting(model="next", headers={b"x-request-timeout-ms": b"1000"})
        clock.advance(1.0)
        house.gateway.watch.sweep()
    assert (late.status, late.headers["x-gllm-reason"], late.headers["retry-after"]) == (503, "model_loading", "1")
    assert "not loaded within" in late.error["message"]
    assert house.recorder.last.outcome is Outcome.DEADLINE


async def test_who_cannot_live_to_see_it_is_refused_at_once_and_told_when_to_come(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted())
    ready_at = clock() + 60.0
    house.gateway.fleet.foretell("w1", Prospect(("next",), coming=True, slots=4, ready_at=ready_at))
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        hasty = crowd.send(model="next", headers={b"x-request-timeout-ms": b"5000"})
        await until(lambda: hasty.ended)
        assert (hasty.status, hasty.headers["x-gllm-reason"]) == (503, "would_miss_deadline")
        assert 55 <= int(hasty.headers["retry-after"]) <= 62
        patient = await crowd.waiting(model="next")
        clock.advance(120)  # it takes longer than it did the last time
        again = await crowd.waiting(model="next", headers={b"x-request-timeout-ms": b"5000"})
        house.gateway.fleet.foretell("w1", None)
    assert {patient.status, again.status} == {503}


async def test_a_line_for_what_comes_is_as_long_as_any_and_its_refusal_says_when(build: Build) -> None:
    house = await build(settings={"QUEUE_CAPACITY": 2}, only=Scripted())
    ready_at = house.gateway.clock() + 30.0
    house.gateway.fleet.foretell("w1", Prospect(("next",), coming=True, slots=4, ready_at=ready_at))
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        for _ in range(2):
            await crowd.waiting(model="next")
        refused = crowd.send(model="next")
        await until(lambda: refused.ended)
        assert (refused.status, refused.headers["x-gllm-reason"]) == (503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 29
        house.gateway.fleet.foretell("w1", None)


async def test_the_last_replica_of_a_model_serves_its_line_and_refuses_newcomers(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    fleet = house.gateway.fleet
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        waits = [await crowd.waiting() for _ in range(3)]
        fleet.drain(fleet.replicas[0])
        late = crowd.send()
        await until(lambda: late.ended)
        house.engine.go_on.set()
    assert [each.status for each in waits] == [200] * 3
    assert (late.status, late.headers["x-gllm-reason"]) == (503, "model_making_way")
    assert int(late.headers["retry-after"]) >= 1
    assert fleet.replicas[0].running == 0


async def test_those_that_still_wait_when_it_is_gone_are_refused(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    fleet = house.gateway.fleet
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        running = await crowd.running()
        waits = [await crowd.waiting() for _ in range(2)]
        fleet.drain(fleet.replicas[0])
        fleet.answered(fleet.replicas[0], {"next": 2_048})  # the drain's time is over
        await until(lambda: all(each.ended for each in waits))
        house.engine.go_on.set()
    assert {(each.status, each.error["code"]) for each in waits} == {(503, "no_replica")}
    assert running.status == 200


async def test_a_draining_replica_keeps_what_it_has_and_others_serve_the_line(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, a=stalling(), b=stalling())
    first, second = house.gateway.fleet.replicas
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        begun = [await crowd.running() for _ in range(2)]
        waits = [await crowd.waiting() for _ in range(3)]
        house.gateway.fleet.drain(first)
        for engine in house.engines.values():
            engine.go_on.set()
    assert [each.status for each in (*begun, *waits)] == [200] * 5
    counts = {name: len(engine.calls) for name, engine in house.engines.items()}
    assert counts == {first.name: 1, second.name: 4}


async def test_health_says_starting_while_the_first_model_comes(build: Build) -> None:
    house = await build(only=Scripted())
    house.gateway.fleet.remove("only")
    assert (await house.get("/health")).json()["status"] == "unhealthy"
    house.gateway.fleet.foretell("w1", COMES)
    health = await house.get("/health")
    assert (health.status, health.json()["status"], health.json()["models"]) == (503, "starting", [])
    assert (await house.get("/readyz")).status == 503
    house.engines.clear()
