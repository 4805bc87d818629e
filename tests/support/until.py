"""Stepping the loop until something is true, never by the clock on the wall."""

import asyncio
from collections.abc import Callable


async def until(true: Callable[[], bool], steps: int = 10_000) -> None:
    for _ in range(steps):
        if true():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come true")
