"""A second try for a stream that is slow to begin: who begins first goes on, the other is aborted at once."""

import asyncio

import pytest

from app.cluster.replica import Lease, Replica
from app.engines.scripted import Scripted
from app.errors import EngineBusy, EngineError, EngineFailed, EngineRefused
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

    def _lease(self, index: int) -> Lease:
        return Lease(self.replicas[index], lambda replica: None)

    def second(self) -> tuple[Lease, Call] | None:
        self.asked += 1
        return (self._lease(1), CALL) if len(self.replicas) > 1 else None

    def race(self, after_s: float = 0.0) -> Race:
        return Race(self.first, CALL, after_s, self.second)

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
        assert track.replicas[1].running == 1
    assert track.engines[1].aborted == 0
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
    track.assert_all_given_back()


async def test_when_both_fail_the_last_failure_is_told() -> None:
    track = Track(Scripted(stall_at=0, break_at=0), Scripted(refuse_with=EngineRefused()))

    async def run() -> None:
        async with track.race():
            raise AssertionError("nobody won")

    running = asyncio.create_task(run())
    await until(lambda: bool(track.engines[1].calls))
    track.engines[0].go_on.set()
    with pytest.raises(EngineError):
        await running
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
