"""Requests that come at once begin a few at a time, in their order, and leave turns to what else there is to do."""

import asyncio
import json
from functools import partial
from itertools import pairwise

import pytest

from app.engines.scripted import Scripted
from app.gateway.protocol import GatewayProtocol
from app.gateway.turns import LEAST, MOST, PER_S, Turns
from tests.gateway.conftest import Build, asking
from tests.support.clock import FakeClock
from tests.support.server import RawClient, serving
from tests.support.until import until


class Crowd:
    """What has begun, turn by turn."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[int] = []

    def comes(self, *numbers: int) -> None:
        for number in numbers:
            self.turns.take(partial(self.begun.append, number), asyncio.get_running_loop())


async def test_who_comes_alone_begins_at_once() -> None:
    crowd = Crowd(Turns(FakeClock(), least=2))
    for number in range(5):
        crowd.comes(number)
        assert crowd.begun[-1] == number
        await asyncio.sleep(0)
    assert len(crowd.turns) == 0


async def test_a_crowd_begins_a_few_in_each_turn_and_in_its_order() -> None:
    crowd = Crowd(Turns(FakeClock(), least=2))
    crowd.comes(*range(7))
    seen = [len(crowd.begun)]
    while len(crowd.turns):
        await asyncio.sleep(0)
        seen.append(len(crowd.begun))
    assert seen == [2, 4, 6, 7]
    assert crowd.begun == list(range(7))


async def test_who_comes_later_waits_behind_those_who_wait() -> None:
    crowd = Crowd(Turns(FakeClock(), least=2))
    crowd.comes(0, 1, 2, 3)
    await asyncio.sleep(0)
    crowd.comes(4, 5, 6)
    assert crowd.begun == [0, 1, 2, 3]
    for _ in range(3):
        await asyncio.sleep(0)
    assert crowd.begun == list(range(7))


async def test_one_that_fails_to_begin_holds_up_nobody() -> None:
    crowd = Crowd(Turns(FakeClock(), least=1))

    def fails() -> None:
        raise RuntimeError

    loop, told = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    crowd.comes(0)
    crowd.turns.take(fails, loop)
    crowd.comes(1)
    for _ in range(4):
        await asyncio.sleep(0)
    assert crowd.begun == [0, 1]
    assert len(told) == 1


async def test_more_begin_in_turns_that_other_work_makes_long() -> None:
    clock = FakeClock()
    crowd = Crowd(Turns(clock, least=2))
    crowd.comes(*range(1_000))
    began = [2]
    for took_s in (0.0, 0.0001, 8.5 / PER_S, 8.5 / PER_S, 1.0, 0.0):
        await asyncio.sleep(0)
        began.append(len(crowd.begun))
        clock.advance(took_s)
    steps = [after - before for before, after in pairwise(began)]
    assert steps == [2, 2, 2, 8, 8, MOST]


async def test_a_crowd_that_comes_later_does_not_profit_from_a_long_turn_before_it() -> None:
    clock = FakeClock()
    crowd = Crowd(Turns(clock, least=2))
    crowd.comes(*range(5))
    clock.advance(1.0)
    for _ in range(4):
        await asyncio.sleep(0)
    assert len(crowd.begun) == 5
    crowd.comes(*range(5))
    assert len(crowd.begun) == 7


def request(*, stream: bool = False) -> bytes:
    body = json.dumps(asking(stream=stream)).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: x", "content-type: application/json")
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


@pytest.mark.parametrize("many", [1, LEAST + 1, 20 * LEAST])
async def test_a_crowd_is_answered_to_the_last(build: Build, many: int) -> None:
    house = await build(only=Scripted())
    async with serving(house.gateway) as port, asyncio.TaskGroup() as tasks:

        async def one() -> int:
            async with RawClient.to(port) as client:
                await client.say(request())
                return (await client.answer())[0]

        asked = [tasks.create_task(one()) for _ in range(many)]
    assert [task.result() for task in asked] == [200] * many


async def test_a_client_that_goes_before_its_turn_takes_nothing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    house = await build(only=Scripted(stall_at=1))
    turns, lost = house.gateway.protocol.turns, asyncio.Event()

    def connection_lost(connection: GatewayProtocol, error: Exception | None) -> None:
        GatewayProtocol.connection_lost(connection, error)
        lost.set()

    monkeypatch.setattr(house.gateway.protocol, "connection_lost", connection_lost)
    async with serving(house.gateway) as port:
        turns._may_begin = 0  # nobody's turn comes
        async with RawClient.to(port) as client:
            await client.say(request(stream=True))
            await until(lambda: len(turns) == 1, steps=100_000)
        await asyncio.wait_for(lost.wait(), 5)
        turns._next(asyncio.get_running_loop())
        await until(lambda: not len(house.gateway.watch))
    assert len(turns) == 0
    assert house.gateway.admission.entered == 0


async def test_its_time_runs_from_when_it_came(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted())
    turns = house.gateway.protocol.turns
    async with serving(house.gateway) as port, RawClient.to(port) as client:
        turns._may_begin = 0
        await client.say(request())
        await until(lambda: len(turns) == 1, steps=100_000)
        clock.advance(7.0)
        turns._next(asyncio.get_running_loop())
        assert (await client.answer())[0] == 200
    assert house.recorder.last.ended - house.recorder.last.began == 7.0
