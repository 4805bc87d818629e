"""An engine under the contract, and what a test may do to it.

Every engine is asked in the same words. A long answer is one that does not end while a test looks; an engine that
cannot be made to fail on demand skips those tests.
"""

import asyncio
import itertools
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum

import pytest

from app.engines.base import Engine
from app.errors import (
    ContextTooLong,
    EngineBusy,
    EngineError,
    EngineFailed,
    EngineForgot,
    EngineLacks,
    EngineMisconfigured,
    EngineNonsense,
    EngineRefused,
    EngineUnreachable,
)
from app.generation import Call, Route
from app.reliability.watch import Watch

PATIENCE_S = 1.0
"""In which an engine notices that nobody waits any more."""

_numbers = itertools.count(1)


class Fault(Enum):
    """What an engine does instead of answering, and the error it enters the gateway as."""

    REFUSED = EngineRefused
    TOO_LONG = ContextTooLong
    LACKS = EngineLacks
    BUSY = EngineBusy
    FORGOT = EngineForgot
    FAILED = EngineFailed
    MISCONFIGURED = EngineMisconfigured
    NONSENSE = EngineNonsense
    UNREACHABLE = EngineUnreachable

    @property
    def error(self) -> type[EngineError]:
        error: type[EngineError] = self.value
        return error


class Rig(ABC):
    engine: Engine
    model: str = "demo"

    @abstractmethod
    async def running(self) -> int:
        """Requests at work inside the engine, as the engine itself counts them."""

    async def fails(self, fault: Fault | None) -> None:
        """From now on, until it is told `None`."""
        pytest.skip("this engine does not fail when it is told to")

    async def breaks_off(self) -> None:
        """From now on an answer ends in its middle."""
        pytest.skip("this engine does not break off when it is told to")

    def call(self, *, stream: bool, long: bool = False, expires_in_s: float = math.inf) -> Call:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "What is a gateway? Grüße, 你好, 👋🏽"}],
            "max_tokens": 2_000 if long else 8,
            "ignore_eos": long,
            "temperature": 0,
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }
        return Call(
            id=f"req-{next(_numbers)}",
            route=Route.CHAT,
            model=self.model,
            body=json.dumps(body).encode(),
            expires_at=time.monotonic() + expires_in_s,
            stream=stream,
        )

    async def comes_to(self, running: int) -> None:
        """The engine has so many requests at work, now or very soon."""
        until = time.monotonic() + PATIENCE_S
        while (now := await self.running()) != running:
            assert time.monotonic() < until, f"{now} requests are at work, not {running}"
            await asyncio.sleep(0.005)


@asynccontextmanager
async def sweeping(watch: Watch) -> AsyncIterator[None]:
    """As in a gateway: what is overdue ends."""
    task = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
