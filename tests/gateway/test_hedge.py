"""A second try for a stream that is slow to begin: who begins first goes on, the other is aborted at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.cluster.replica import Lease, Replica
from app.engines.scripted import Scripted
from app.errors import EngineBusy, EngineError, EngineFailed, EngineUnreachable
from app.gateway.hedge import Race
from app.generation import Call, Route
from tests.support.until import until

CALL = Call(id="r", route=Route.CHAT, model="demo", body=b"{}", expires_at=1e9, stream=True)


class Track:
    """Two replicas, leased for one call."""

    def __init__(self, first: Scripted, second: Scripted | None) -> None:
        self.engines = [first, *([second] if second else [])]
        self.replicas = [Replica(f"r{index}", engine) for index, engine in enumerate(self.engines)]
        self.first = self._lease(0)
        self.asked = 0
        self.lost: list[tuple[str, type[EngineError]]] = []

    def _lease(self, index: int) -> Lease:
        return Lease(self.replicas[index], lambda replica: None)

    def second(self) -> tuple[Lease, Call] | None:
        self.asked += 1
        return (self._lease(1), CALL) if len(self.replicas) > 1 else None

    def race(self, after_s: float = 0.0) -> Race:
        return Race(self.first, CALL, after_s, self.second, self._is_lost)

    def _is_lost(self, lease: Lease, error: EngineError) -> None:
        assert lease.held
        self.lost.append((lease.replica.name, type(error)))

    def assert_all_given_back(self) -> None:
        self.first.release()
        assert [engine.running for engine in self.engines] == [0] * len(self.engines)
        assert [replica.running for replica in self.replicas] == [0] * len(self.replicas)


async def test_a_prompt_first_try_stays_alone() -> None:
    track = Track(Scripted(), Scripted())
    async with track.race(after_s=5) as race:
        assert race.winner.lease is track.first
        rest = [block async for block in race.winner.blocks]
    assert race.winner.first
    assert rest[-1] == b"data: [DONE]\n\n"
    assert track.asked == 0
    track.assert_all_given_back()


async def test_who_begins_first_goes_on_and_the_other_is_aborted_at_once() -> None:
    track = Track(Scripted(stall_at=0), Scripted())
    async with track.race() as race:
        assert race.winner.lease is not track.first
        assert track.engines[0].aborted == 1
        assert [block async for block in race.winner.blocks]
    assert track.engines[1].aborted == 0
    assert track.replicas[1].running == 1, "its lease is the caller's to end"
    race.winner.lease.release()
    track.assert_all_given_back()


async def test_when_the_first_wins_in_the_end_the_second_slot_is_free_at_once() -> None:
    first = Scripted(stall_at=0)
    track = Track(first, Scripted(stall_at=0))

    async def run() -> None:
        async with track.race() as race:
            assert race.winner.lease is track.first
            assert track.replicas[1].running == 0
            assert [block async for block in race.winner.blocks]

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        await until(lambda: track.engines[1].running == 1)
        first.go_on.set()
    track.assert_all_given_back()


async def test_where_no_second_replica_has_room_the_first_is_awaited() -> None:
    first = Scripted(stall_at=0)
    track = Track(first, None)

    async def run() -> None:
        async with track.race() as race:
            assert race.winner.lease is track.first

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        await until(lambda: track.asked == 1)
        first.go_on.set()
    track.assert_all_given_back()


@pytest.mark.parametrize("error", [EngineFailed(), EngineBusy()])
async def test_one_that_fails_leaves_the_race_to_the_other(error: EngineError) -> None:
    well = Scripted(stall_at=0)
    track = Track(well, Scripted(refuse_with=error))

    async def run() -> None:
        async with track.race() as race:
            assert race.winner.lease is track.first

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        await until(lambda: bool(track.engines[1].calls))
        well.go_on.set()
    assert track.lost == [("r1", type(error))]
    track.assert_all_given_back()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_when_both_fail_each_failure_is_told_of_the_one_that_failed(order: tuple[int, int]) -> None:
    breaking = Scripted(stall_at=0, break_at=0, break_with=EngineFailed)
    unreachable = Scripted(stall_at=0, break_at=0, break_with=EngineUnreachable)
    track = Track(breaking, unreachable)

    async def run() -> None:
        async with track.race():
            raise AssertionError("nobody won")

    running = asyncio.create_task(run())
    await until(lambda: unreachable.running == 1)
    for index in order:
        track.engines[index].go_on.set()
        for _ in range(10):
            await asyncio.sleep(0)
    with pytest.raises(EngineFailed):
        await running
    assert track.lost == [("r1", EngineUnreachable)]
    track.assert_all_given_back()


async def test_when_the_second_goes_on_the_firsts_failure_is_told_too() -> None:
    track = Track(Scripted(stall_at=0, break_at=0, break_with=EngineFailed), Scripted(stall_at=0))

    async def run() -> None:
        async with track.race() as race:
            assert race.winner.lease is not track.first
        race.winner.lease.release()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        await until(lambda: track.engines[1].running == 1)
        for engine in track.engines:
            engine.go_on.set()
            await until(lambda ended=engine: ended.running == 0)  # type: ignore[misc]
    assert track.lost == [("r0", EngineFailed)]
    track.assert_all_given_back()


async def test_a_race_that_is_cancelled_leaves_nobody_running() -> None:
    track = Track(Scripted(stall_at=0), Scripted(stall_at=0))

    async def run() -> None:
        async with track.race():
            raise AssertionError("nobody won")

    running = asyncio.create_task(run())
    await until(lambda: track.engines[1].running == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [engine.aborted for engine in track.engines] == [1, 1]
    track.assert_all_given_back()


class Slow(Scripted):
    """Takes its time to stop, as a connection does that is to be closed."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.stopped = asyncio.Event()

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().open(call) as blocks:
            try:
                yield blocks
            finally:
                await self.stopped.wait()


async def test_a_cancel_while_the_loser_is_stopped_leaves_nobody_running() -> None:
    loser = Slow(stall_at=0)
    track = Track(loser, Scripted())

    async def run() -> None:
        async with track.race():
            raise AssertionError("nobody won")

    running = asyncio.create_task(run())
    await until(lambda: track.engines[1].running == 1)
    for _ in range(10):
        await asyncio.sleep(0)
    running.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    loser.stopped.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: loser.running == 0)
    track.assert_all_given_back()


async def test_a_second_cancel_while_all_is_stopped_gives_the_slot_back_too() -> None:
    slow = Slow(stall_at=0)
    track = Track(slow, Scripted(stall_at=0))

    async def run() -> None:
        async with track.race():
            raise AssertionError("nobody won")

    running = asyncio.create_task(run())
    await until(lambda: track.engines[1].running == 1)
    for _ in range(2):
        running.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
    slow.stopped.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: slow.running == 0)
    track.assert_all_given_back()
