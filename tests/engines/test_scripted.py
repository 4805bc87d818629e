"""The engine that does as it is told: when, how much, and what is true of it afterwards. On virtual time."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.engines.scripted import End, Script, Scripted
from app.errors import (
    DeadlinePassed,
    EngineBroken,
    EngineBusy,
    EngineError,
    EngineLost,
    EngineSilent,
    EngineStalled,
    EngineUnreachable,
    GatewayError,
)
from app.generation import Call, Route, Usage
from app.reliability.limit import Load
from app.wire.answers import stream_reader, usage_of
from tests.simulation.loop import VirtualLoop, run

ABC = ("a", "b", "c")


def call(*, stream: bool = True, expires_at: float = math.inf, counts_along: bool = False) -> Call:
    return Call("req", Route.CHAT, "demo", b"{}", expires_at, stream=stream, counts_along=counts_along)


class Scene:
    """An engine whose clock is the loop's, and readers of it."""

    def __init__(self, **told: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.engine = Scripted(clock=self.loop.time, **told)
        self.arrived: list[float] = []

    def passed(self) -> float:
        return round(self.loop.time() - self.began, 6)

    async def read(self, asked: Call) -> bytes:
        body = b""
        async with self.engine.open(asked) as blocks:
            async for block in blocks:
                self.arrived.append(self.passed())
                body += block
        return body

    def reading(self, asked: Call) -> "asyncio.Task[bytes]":
        return asyncio.get_running_loop().create_task(self.read(asked))

    async def ends_with(self, error: type[GatewayError], asked: Call) -> float:
        """When."""
        with pytest.raises(error) as caught:
            await self.read(asked)
        assert type(caught.value) is error
        return self.passed()


def played(play: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run(VirtualLoop(), play(), seed=1)


# --- its pace -----------------------------------------------------------------------------------------------------


def test_tokens_come_in_their_time() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, first_after_s=1, pace_s=0.1)
        await scene.read(call())
        assert scene.arrived == [1, 1.1, 1.2, 1.3, 1.3, 1.3, 1.3]

    played(play)


def test_a_whole_answer_comes_when_all_is_made() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, first_after_s=1, pace_s=0.1)
        await scene.read(call(stream=False))
        assert scene.arrived == [1.3]

    played(play)


def test_events_may_come_together() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1, events_per_block=3)
        body = await scene.read(call())
        assert scene.arrived == [2, 3, 3]
        assert body.endswith(b"data: [DONE]\n\n")

    played(play)


def test_an_endless_answer_ends_with_its_reader() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1, endless=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10.5):
                await scene.read(call())
        (work,) = scene.engine.works
        assert (work.end, work.text, scene.engine.aborted) == (End.ABORTED, "abcabcabca", 1)

    played(play)


def test_each_call_may_have_a_script_of_its_own() -> None:
    async def play() -> None:
        scene = Scene(script=lambda asked: Script(words=("streamed" if asked.stream else "whole",)))
        assert b"streamed" in await scene.read(call())
        assert b"whole" in await scene.read(call(stream=False))

    played(play)


# --- how much at once ---------------------------------------------------------------------------------------------


def test_beyond_its_slots_calls_wait_in_the_order_in_which_they_came() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1, slots=1)
        reading = [scene.reading(call(stream=False)) for _ in range(3)]
        await asyncio.sleep(0.5)
        assert await scene.engine.load() == Load(waiting=2, running=1, kv_share=None)
        await asyncio.gather(*reading)
        assert scene.arrived == [3, 6, 9]

    played(play)


def test_beyond_its_places_it_is_busy() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1, slots=1, places=1)
        reading = [scene.reading(call()) for _ in range(2)]
        await asyncio.sleep(0)
        assert await scene.ends_with(EngineBusy, call()) == 0
        await asyncio.gather(*reading)
        assert [work.end for work in scene.engine.works] == [End.FINISHED, End.FINISHED, End.REFUSED]

    played(play)


def test_who_leaves_the_line_leaves_no_hole() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1, slots=1)
        first, second, third = [scene.reading(call(stream=False)) for _ in range(3)]
        await asyncio.sleep(1)
        second.cancel()
        await asyncio.wait({first, third})
        assert scene.arrived == [3, 6]
        assert scene.engine.running == 0

    played(play)


# --- its life -----------------------------------------------------------------------------------------------------


def test_when_it_dies_all_breaks_off_and_nobody_can_connect_until_it_lives_again() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1)
        begun, whole = scene.reading(call()), scene.reading(call(stream=False))
        await asyncio.sleep(1.5)
        scene.engine.die()
        await asyncio.wait({begun, whole})
        assert scene.passed() == 1.5
        assert [type(task.exception()) for task in (begun, whole)] == [EngineBroken, EngineLost]
        await scene.ends_with(EngineUnreachable, call())
        with pytest.raises(EngineUnreachable):
            await scene.engine.models()
        scene.engine.revive()
        assert await scene.engine.models()
        assert await scene.read(call())

    played(play)


def test_what_ran_when_it_died_stays_broken_though_it_lives_again_at_once() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1)
        begun = scene.reading(call())
        await asyncio.sleep(1.5)
        scene.engine.die()
        scene.engine.revive()
        await asyncio.wait({begun})
        assert isinstance(begun.exception(), EngineBroken)

    played(play)


def test_frozen_it_says_nothing_and_thawed_it_goes_on() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1)
        reading = scene.reading(call())
        await asyncio.sleep(1.5)
        scene.engine.freeze()
        await asyncio.sleep(10)
        assert len(scene.arrived) == 2
        scene.engine.thaw()
        await reading
        assert scene.engine.works[0].text == "abc"

    played(play)


@pytest.mark.parametrize(("after", "error", "at"), [(0, EngineSilent, 4), (2, EngineStalled, 6)])
def test_silence_ends_where_the_gateways_patience_does(after: int, error: type[EngineError], at: float) -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1, stall_at=after, first_byte_s=4, idle_s=5)
        assert await scene.ends_with(error, call()) == at

    played(play)


# --- deadlines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("told", [{"first_after_s": 60.0}, {"pace_s": 60.0}, {"stall_at": 0}, {"slots": 0}])
def test_it_gives_up_when_the_calls_time_is_over(stream: bool, told: dict[str, Any]) -> None:
    async def play() -> None:
        scene = Scene(**told)
        assert await scene.ends_with(DeadlinePassed, call(stream=stream, expires_at=scene.began + 5)) == 5
        assert (scene.engine.running, scene.engine.works[0].end) == (0, End.BROKEN)

    played(play)


# --- what it tells ------------------------------------------------------------------------------------------------


def test_it_counts_along_where_it_is_asked_to() -> None:
    async def play() -> None:
        scene = Scene(words=ABC, pace_s=1)
        asked = call(counts_along=True)
        reader = stream_reader(asked)
        async with scene.engine.open(asked) as blocks:
            async for block in blocks:
                assert b"usage" not in reader.read(block)
                if scene.passed() == 2:
                    break
        assert reader.usage == scene.engine.works[0].told == Usage(7, 2)

    played(play)


def test_it_lies_where_it_is_told_to() -> None:
    async def play() -> None:
        scene = Scene(lies={"completion_tokens": 10**9}, prompt_tokens=3)
        assert usage_of(await scene.read(call(stream=False))) == Usage(0, 10**9)
        (work,) = scene.engine.works
        assert (work.told, work.usage) == (None, Usage(3, 4))

    played(play)
