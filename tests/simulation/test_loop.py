"""Time that jumps, and never by itself."""

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.simulation.loop import Deadlock, VirtualLoop, run


def test_a_day_passes_in_no_time() -> None:
    loop = VirtualLoop(began=5.0)
    began = time.monotonic()
    run(loop, asyncio.sleep(86_400), seed=1)
    assert loop.time() == 86_405.0
    assert time.monotonic() - began < 1


def test_what_is_due_runs_in_the_order_in_which_it_is_due() -> None:
    async def main() -> list[tuple[float, str]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[float, str]] = []

        async def after(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            seen.append((loop.time(), name))

        await asyncio.gather(after(3, "last"), after(1, "first"), after(2, "second"), after(2, "third"))
        return seen

    assert run(VirtualLoop(0.0), main(), seed=1) == [(1, "first"), (2, "second"), (2, "third"), (3, "last")]


def test_time_stands_still_while_anything_can_run() -> None:
    async def main() -> float:
        timer = asyncio.get_running_loop().create_task(asyncio.sleep(1))
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert not timer.done()
        now = asyncio.get_running_loop().time()
        await timer
        return now

    assert run(VirtualLoop(7.0), main(), seed=1) == 7.0


def test_when_nothing_can_happen_any_more_it_says_who_waits_and_where() -> None:
    async def the_one_who_waits() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match="the_one_who_waits"):
        run(VirtualLoop(), the_one_who_waits(), seed=1)


def test_a_timer_that_never_comes_is_no_hope() -> None:
    async def main() -> None:
        async with asyncio.timeout(float("inf")):
            await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(VirtualLoop(), main(), seed=1)


def test_chance_follows_from_the_seed_and_leaves_no_trace() -> None:
    async def drawn() -> list[float]:
        return [random.random() for _ in range(3)]

    before = random.getstate()
    assert run(VirtualLoop(), drawn(), seed=1) == run(VirtualLoop(), drawn(), seed=1)
    assert run(VirtualLoop(), drawn(), seed=1) != run(VirtualLoop(), drawn(), seed=2)
    assert random.getstate() == before


def test_what_threads_do_is_done_at_once_and_told_later() -> None:
    async def main() -> list[str]:
        seen: list[str] = []
        pool = ThreadPoolExecutor()
        by_hand = asyncio.wrap_future(pool.submit(seen.append, "by hand"))
        assert (seen, by_hand.done()) == (["by hand"], False)
        await by_hand
        await asyncio.to_thread(seen.append, "to a thread")
        with pytest.raises(ZeroDivisionError):
            await asyncio.get_running_loop().run_in_executor(pool, divmod, 1, 0)
        return seen

    assert run(VirtualLoop(), main(), seed=1) == ["by hand", "to a thread"]


def test_it_is_looked_at_after_each_turn() -> None:
    turns: list[float] = []
    loop = VirtualLoop(0.0, observe=lambda: turns.append(loop.time()))
    run(loop, asyncio.sleep(2), seed=1)
    assert turns[:1] == [0.0]
    assert 2.0 in turns
    assert turns == sorted(turns)


def test_what_is_left_is_ended() -> None:
    ended: list[str] = []

    async def left() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("it")

    async def main() -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(left())
        await asyncio.sleep(0)
        return task

    assert run(VirtualLoop(), main(), seed=1).cancelled()
    assert ended == ["it"]
