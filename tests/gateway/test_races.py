"""What meets in one moment: room that comes while somebody waits, hang-ups during a hand-over, ends that coincide."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.cluster.replica import State
from app.engines.scripted import Scripted
from app.errors import EngineBusy, EngineFailed, EngineUnreachable, Outcome
from app.generation import Call, Usage
from app.reliability.circuit import CircuitState
from app.reliability.stores.answers import Kept, Key
from app.reliability.stores.embedded import EmbeddedAnswers
from tests.gateway.conftest import CHAT, Build, House, asking
from tests.gateway.test_admission import ONE_AT_A_TIME, Crowd, stalling
from tests.support.asgi import JSON, Exchange
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


# --- an answer that is there --------------------------------------------------------------------------------------


class Lingering(Scripted):
    """Says all it has to say, and takes its time to close."""

    def __init__(self) -> None:
        super().__init__()
        self.closes = asyncio.Event()
        self.closing = False

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().open(call) as blocks:
            yield blocks
            self.closing = True
            await self.closes.wait()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("drains", [False, True])
async def test_an_answer_that_is_complete_is_not_taken_from_the_client_any_more(
    build: Build, stream: bool, drains: bool
) -> None:
    clock, engine = FakeClock(), Lingering()
    house = await build(clock=clock, only=engine)
    async with asyncio.TaskGroup() as tasks:
        answered = await Crowd(house, tasks).running(stream=stream, headers={b"x-request-timeout-ms": b"2000"})
        await until(lambda: engine.closing)
        if drains:
            house.gateway.admission.drain(1)
        clock.advance(2)
        house.gateway.watch.sweep()
        engine.closes.set()
        await house.gateway.admission.empty()
    assert (answered.status, house.recorder.last.outcome) == (200, Outcome.OK)
    assert b"error" not in answered.body
    assert house.recorder.last.usage == Usage(7, 4)


async def test_what_breaks_after_the_end_of_a_stream_takes_nothing_from_it(build: Build) -> None:
    house = await build(only=Scripted(break_at=8))
    done = await house.post(asking(stream=True))
    assert done.events()[-1] == "[DONE]"
    assert house.recorder.last.outcome is Outcome.OK


@pytest.mark.parametrize("stream", [False, True])
async def test_a_time_limit_that_ends_while_the_answer_is_being_kept_is_not_missed(
    build: Build, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    house = await build(clock=clock)
    keeping, goes_on = asyncio.Event(), asyncio.Event()
    put = EmbeddedAnswers.put

    async def slow(store: EmbeddedAnswers, key: Key, answer: Kept) -> None:
        keeping.set()
        await goes_on.wait()
        await put(store, key, answer)

    monkeypatch.setattr(EmbeddedAnswers, "put", slow)
    headers = {b"idempotency-key": b"k", b"x-request-timeout-ms": b"2000"}
    async with asyncio.TaskGroup() as tasks:
        answered = await Crowd(house, tasks).running(stream=stream, headers=headers)
        await keeping.wait()
        clock.advance(2)
        house.gateway.watch.sweep()
        for _ in range(10):
            await asyncio.sleep(0)
        goes_on.set()
    assert (answered.status, house.recorder.last.outcome) == (200, Outcome.OK)
    assert b"error" not in answered.body
    assert answered.ended


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
    assert [attempt.beside for attempt in house.recorder.last.tries] == [False, True]
    assert 'gllm_hedges_total{result="won"} 1.0' in (await house.get("/metrics")).body.decode()
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


# --- what is charged ----------------------------------------------------------------------------------------------


async def test_what_an_engine_does_not_tell_is_guessed_alike_with_a_key_and_without(build: Build) -> None:
    house = await build(only=Scripted(tells_usage=False))
    for headers in (JSON, [*JSON, (b"idempotency-key", b"k")]):
        assert (await house.post(asking(max_tokens=50), headers=headers)).status == 200
    guesses = [record.usage for record in house.recorder.records]
    assert [usage and usage.completion_tokens for usage in guesses] == [50, 50]


class Tardy(Exchange):
    """Takes so long to send its body."""

    def __init__(self, clock: FakeClock, takes_s: float, *asked: Any, **how: Any) -> None:
        super().__init__(*asked, **how)
        self._clock = clock
        self._takes_s = takes_s

    async def _receive(self) -> dict[str, Any]:
        self._clock.advance(self._takes_s)
        return await super()._receive()


async def test_whose_time_is_over_before_it_comes_to_an_engine_is_charged_nothing(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock)
    late = Tardy(clock, 1, CHAT, asking(), headers=[*JSON, (b"x-request-timeout-ms", b"500")])
    await late.run(house.gateway.app)
    assert (late.status, late.error["code"]) == (504, "deadline_exceeded")
    assert house.engine.calls == []
    assert house.recorder.last.usage is None


# --- what a refusal says ------------------------------------------------------------------------------------------


async def test_every_503_says_when_to_come_again(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted(refuse_with=EngineBusy(), refusals=1, stall_at=0))
    async with asyncio.TaskGroup() as tasks:
        busy = await house.post(asking())
        ended = await Crowd(house, tasks).running()
        house.gateway.admission.drain(30)
        clock.advance(30)
        house.gateway.watch.sweep()
        await house.gateway.admission.empty()
    assert [(each.status, each.error["code"]) for each in (busy, ended)] == [(503, "engine_busy"), (503, "draining")]
    assert [each.headers.get("retry-after") for each in (busy, ended)] == ["1", "1"]


async def test_who_waits_for_another_replica_that_disappears_hears_what_the_first_one_said(build: Build) -> None:
    busy = Scripted(stall_at=0, break_at=0, break_with=EngineBusy)
    house = await build(settings={**ONE_AT_A_TIME, "ROUTING_POLICY": "round_robin"}, busy=busy, well=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        refused = await crowd.running()
        await crowd.running()
        busy.go_on.set()
        await until(lambda: house.gateway.admission.waiting == 1)
        house.gateway.fleet.failed(house.gateway.fleet.replicas[1], "EngineUnreachable")
        await until(lambda: refused.ended)
        house.engines["well"].go_on.set()
    assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, "engine_busy", "1")
