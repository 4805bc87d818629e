import asyncio
import math
from dataclasses import dataclass, field

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


async def test_it_looks_again_and_again_until_it_is_cancelled() -> None:
    watch, (wait,) = watched(FakeClock(now=10), 1)
    running = asyncio.get_running_loop().create_task(watch.run(tick_s=0))
    for _ in range(100):
        if len(wait.expired_at) >= 2:
            break
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    assert len(wait.expired_at) >= 2
