import asyncio
import math
from dataclasses import dataclass, field

import pytest

from app.reliability import watch as subject
from app.reliability.watch import Watch
from tests.support.clock import FakeClock


@dataclass(eq=False)
class Waiting:
    due: float = math.inf
    expired_at: list[float] = field(default_factory=list)

    def expire(self, now: float) -> None:
        self.expired_at.append(now)


def watched(clock: FakeClock, *dues: float) -> tuple[Watch, list[Waiting]]:
    watch, waits = Watch(clock), [Waiting(due) for due in dues]
    for wait in waits:
        watch.add(wait)
    return watch, waits


def test_what_is_overdue_is_ended_and_nothing_else() -> None:
    clock = FakeClock(now=10)
    watch, (over, just, soon, never) = watched(clock, 9, 10, 10.1, math.inf)
    watch.sweep()
    assert [wait.expired_at for wait in (over, just, soon, never)] == [[10], [10], [], []]


def test_a_wait_may_move_its_limit_at_any_time() -> None:
    clock = FakeClock(now=10)
    watch, (wait,) = watched(clock, 11)
    wait.due = 20
    clock.advance(5)
    watch.sweep()
    assert wait.expired_at == []
    clock.advance(5)
    watch.sweep()
    assert wait.expired_at == [20]


def test_a_wait_that_stays_overdue_is_told_at_every_sweep() -> None:
    watch, (wait,) = watched(FakeClock(now=10), 1)
    watch.sweep()
    watch.sweep()
    assert wait.expired_at == [10, 10]


def test_a_wait_that_is_taken_away_is_forgotten() -> None:
    watch, (wait,) = watched(FakeClock(now=10), 1)
    watch.discard(wait)
    watch.discard(wait)
    watch.sweep()
    assert (len(watch), wait.expired_at) == (0, [])


def test_a_wait_may_leave_while_it_is_ended() -> None:
    watch = Watch(FakeClock(now=10))

    class Leaving(Waiting):
        def expire(self, now: float) -> None:
            watch.discard(self)
            super().expire(now)

    leaving = [Leaving(1), Leaving(2)]
    for wait in leaving:
        watch.add(wait)
    watch.sweep()
    assert (len(watch), [wait.expired_at for wait in leaving]) == (0, [[10], [10]])


def test_a_wait_that_another_one_has_ended_is_not_ended_again() -> None:
    watch, (first, second) = watched(FakeClock(now=10), 1, 2)
    first.expire = lambda now: watch.discard(second)  # type: ignore[method-assign]
    watch.sweep()
    assert second.expired_at == []


async def test_very_many_are_looked_at_in_slices_and_others_have_their_turns_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subject, "SLICE", 3)
    watch, waits = watched(FakeClock(now=10), *[1.0] * 7)
    running = asyncio.get_running_loop().create_task(watch.run())
    seen = []
    for _ in range(5):
        await asyncio.sleep(0)
        seen.append(sum(len(wait.expired_at) for wait in waits))
    running.cancel()
    assert seen == [3, 6, 7, 7, 7]


async def test_who_leaves_between_two_slices_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "SLICE", 1)
    watch, (_, second) = watched(FakeClock(now=10), 1, 1)
    running = asyncio.get_running_loop().create_task(watch.run())
    await asyncio.sleep(0)
    watch.discard(second)
    await asyncio.sleep(0)
    running.cancel()
    assert second.expired_at == []


async def test_where_looking_takes_long_it_is_done_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = FakeClock(now=10), []

    class Slow(Waiting):
        def expire(self, now: float) -> None:
            clock.advance(0.01)

    async def sleep(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    for slow in (0, 1):
        watch = Watch(clock)
        for _ in range(slow):
            watch.add(Slow(1))
        with pytest.raises(asyncio.CancelledError):
            await watch.run()
    assert pauses == [pytest.approx(subject.TICK_S), pytest.approx(0.01 * subject.REST)]


@pytest.mark.parametrize(("stood_still_s", "grace_s"), [(0.2, None), (1.0, 1.0), (600.0, subject.GRACE_S)])
async def test_after_a_standstill_what_came_meanwhile_is_heard_before_anybodys_time_is_over(
    monkeypatch: pytest.MonkeyPatch, stood_still_s: float, grace_s: float | None
) -> None:
    clock, pauses = FakeClock(now=10), []
    watch, (wait,) = watched(clock, 10.1)

    async def sleep(seconds: float) -> None:
        clock.advance(seconds)
        if not seconds:
            return
        pauses.append(seconds)
        if len(pauses) == 1:
            clock.advance(stood_still_s)
        elif grace_s is not None and len(pauses) == 2:
            assert wait.expired_at == []
            wait.due = math.inf  # it is heard
        elif len(pauses) > 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await watch.run()
    assert pauses[1] == pytest.approx(grace_s or subject.TICK_S)
    assert bool(wait.expired_at) == (grace_s is None)


async def test_it_looks_again_and_again_until_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "TICK_S", 0)
    watch, (wait,) = watched(FakeClock(now=10), 1)
    running = asyncio.get_running_loop().create_task(watch.run())
    for _ in range(100):
        if len(wait.expired_at) >= 2:
            break
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert len(wait.expired_at) >= 2
