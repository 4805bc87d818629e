"""Concurrent work for callers without an event loop, or with one that is busy running them (a notebook's)."""

import asyncio
from collections.abc import Coroutine
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Its result, from a loop on a thread of its own. Whoever interrupts this (Ctrl+C) has ended the work, too."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="gllm-batch", daemon=True)
    thread.start()
    future = asyncio.run_coroutine_threadsafe(_ended(work), loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
    finally:
        asyncio.run_coroutine_threadsafe(_all_ended(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _ended(work: Coroutine[Any, Any, T]) -> T:
    """Of errors that came at once, the first is told: the others follow from it, or say the same."""
    try:
        return await work
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


async def _all_ended() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)
