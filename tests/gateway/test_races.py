"""What meets in one moment: room that comes while somebody waits, hang-ups during a hand-over, ends that coincide."""

import asyncio
from typing import Any

from app.cluster.replica import State
from app.engines.scripted import Scripted
from app.errors import EngineFailed, EngineUnreachable
from app.reliability.circuit import CircuitState
from tests.gateway.conftest import Build, House, asking
from tests.gateway.test_admission import ONE_AT_A_TIME, Crowd, stalling
from tests.support.clock import FakeClock
from tests.support.until import until

NORMAL = {b"x-priority": b"normal"}


# --- no slot idles while somebody waits for it --------------------------------------------------------------------


async def test_the_reserve_is_there_for_an_interactive_call_also_while_others_wait(build: Build) -> None:
    settings = {"MAX_CONCURRENT_REQUESTS": 2, "INTERACTIVE_SHARE": 0.5}
    house = await build(settings=settings, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(headers=NORMAL)
        await crowd.waiting(headers=NORMAL)
        await crowd.running(headers={b"x-priority": b"interactive"})
        house.engine.go_on.set()


async def test_a_newcomer_takes_the_room_that_a_returning_call_avoids(build: Build) -> None:
    sick = Scripted(stall_at=0, break_at=0)
    house = await build(settings={**ONE_AT_A_TIME, "ROUTING_POLICY": "round_robin"}, sick=sick, well=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(user="one")
        await crowd.running(user="two")
        sick.go_on.set()
        await until(lambda: house.gateway.admission.waiting == 1)
        sick.break_at = None
        newcomer = await house.post(asking(user="three"))
        house.engines["well"].go_on.set()
    assert (newcomer.status, newcomer.headers["x-gllm-replica"]) == (200, "sick")


async def resting(build: Build, clock: FakeClock) -> House:
    """Of two replicas one is being given a pause, and knows no trouble any more."""
    settings = {"MAX_CONCURRENT_REQUESTS": 2, "CIRCUIT_FAILURES": 1, "MAX_ATTEMPTS": 1, "ROUTING_POLICY": "round_robin"}
    sick = stalling(refuse_with=EngineFailed(), refusals=1)
    house = await build(settings=settings, clock=clock, sick=sick, well=stalling())
    assert (await house.post(asking())).status == 502
    return house


async def test_a_replica_that_has_proved_itself_serves_those_that_wait_at_once(build: Build) -> None:
    clock = FakeClock()
    house = await resting(build, clock)
    sick = house.engines["sick"]
    sick.stall_at = 1
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        for _ in range(2):
            await crowd.running()
        for _ in range(2):
            await crowd.waiting(stream=True)
        clock.advance(5)
        await crowd.running(stream=True)  # whoever comes, it is the first of those that wait who tries
        await until(lambda: sick.running == 2)
        for engine in house.engines.values():
            engine.go_on.set()


async def test_when_a_pause_is_over_one_of_those_that_wait_tries(build: Build) -> None:
    clock = FakeClock()
    house = await resting(build, clock)
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        for _ in range(2):
            await crowd.running()
        for _ in range(2):
            await crowd.waiting()
        clock.advance(5)
        await house.gateway.prober.round()
        await until(lambda: house.engines["sick"].running == 1)
        assert house.gateway.admission.waiting == 1
        for engine in house.engines.values():
            engine.go_on.set()


async def test_a_limit_that_shrinks_leaves_room_for_others_than_interactive_calls(build: Build) -> None:
    settings = {"MAX_CONCURRENT_REQUESTS": 4, "INTERACTIVE_SHARE": 0.5, "ADAPTIVE_CONCURRENCY": True}
    house = await build(settings=settings, only=stalling())
    for slots in (3, 2, 1):
        house.gateway.fleet.resize(house.gateway.fleet.replicas[0], slots)
        async with asyncio.TaskGroup() as tasks:
            await Crowd(house, tasks).running(headers=NORMAL)
            house.engine.go_on.set()
        house.engine.go_on.clear()


async def test_a_limit_grows_for_those_that_must_not_use_the_reserve(build: Build) -> None:
    settings = {"MAX_CONCURRENT_REQUESTS": 4, "INTERACTIVE_SHARE": 0.5, "ADAPTIVE_CONCURRENCY": True}
    house = await build(settings=settings, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        for _ in range(2):
            await crowd.running(headers=NORMAL)
        for _ in range(2):
            await crowd.waiting(headers=NORMAL)
        for _ in range(2):
            await house.gateway.prober.round()
        assert house.gateway.fleet.slots("demo") == 6
        await until(lambda: house.engine.running == 3)
        house.engine.go_on.set()


# --- two tries at once --------------------------------------------------------------------------------------------


async def hedging(build: Build, **settings: Any) -> House:
    """It knows by now what is slow."""
    settings = {"HEDGE_SHARE": 0.2, "ROUTING_POLICY": "round_robin", "MAX_ATTEMPTS": 1, **settings}
    house = await build(settings=settings, a=Scripted(), b=Scripted())
    for _ in range(60):
        assert (await house.post(asking(stream=True))).status == 200
    return house


async def test_a_second_try_that_goes_on_and_breaks_speaks_against_its_replica(build: Build) -> None:
    house = await hedging(build, CIRCUIT_FAILURES=1)
    house.engines["a"].stall_at = 0
    house.engines["b"].break_at = 2
    broken = await house.post(asking(stream=True))
    assert broken.events()[-1]["error"]["code"] == "engine_interrupted"
    assert broken.headers["x-gllm-replica"] == "b"
    a, b = house.gateway.fleet.replicas
    assert (a.circuit.state, b.circuit.state) == (CircuitState.CLOSED, CircuitState.OPEN)


async def test_of_two_tries_the_one_that_could_not_be_reached_is_not_asked_again(build: Build) -> None:
    house = await hedging(build)
    for engine, error in zip(house.engines.values(), (EngineFailed, EngineUnreachable), strict=True):
        engine.stall_at = engine.break_at = 0
        engine.break_with = error
    a, b = house.engines.values()
    async with asyncio.TaskGroup() as tasks:
        failed = await Crowd(house, tasks).running(stream=True)
        await until(lambda: b.running == 1)
        for engine in (a, b):
            engine.go_on.set()
            await until(lambda ended=engine: ended.running == 0)  # type: ignore[misc]
    assert (failed.status, failed.error["code"], failed.headers["x-should-retry"]) == (502, "engine_failed", "false")
    assert [replica.state for replica in house.gateway.fleet.replicas] == [State.READY, State.FAILING]
