"""The one who waits is woken, whoever rings when."""

import asyncio

import pytest

from app.gateway.bell import Bell


async def waiting(bell: Bell) -> asyncio.Task[None]:
    task = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    return task


async def test_who_comes_after_it_has_rung_waits_for_nothing() -> None:
    bell = Bell(rung=True)
    await bell.wait()
    assert bell.is_set()


async def test_who_waits_is_woken_once_it_rings() -> None:
    bell = Bell()
    task = await waiting(bell)
    assert not task.done()
    bell.set()
    bell.set()
    await task
    bell.clear()
    assert not (await waiting(bell)).done()


async def test_what_is_taken_back_before_the_waiter_runs_was_no_ring() -> None:
    bell = Bell()
    task = await waiting(bell)
    bell.set()
    bell.clear()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not task.done()
    bell.set()
    await task


async def test_who_has_given_up_leaves_room_for_the_next() -> None:
    bell = Bell()
    task = await waiting(bell)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    bell.set()
    await bell.wait()


async def test_there_is_one_who_waits_and_no_second() -> None:
    bell = Bell()
    first = await waiting(bell)
    with pytest.raises(RuntimeError):
        await bell.wait()
    bell.set()
    await first
