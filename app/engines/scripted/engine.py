"""The engine: it takes calls, and does with each what its script says, for as long as it lives."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from app.clock import Clock
from app.engines.scripted.exchange import Exchange
from app.engines.scripted.script import Script
from app.engines.scripted.work import End, Work
from app.errors import EngineBusy, EngineError, EngineSilent, EngineUnreachable
from app.generation import Call
from app.reliability.limit import Load


@dataclass
class Scripted(Script):
    """It is its own script, the same for every call, unless `script` chooses one for each."""

    serves: dict[str, int | None] = field(default_factory=lambda: {"demo": 2_048})
    script: Callable[[Call], Script] | None = None
    refusals: float = math.inf
    """How many calls are refused before the engine answers again."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    slots: int | None = None
    """How many calls it works on at once. More wait inside the engine, first come, first served,"""
    places: float = math.inf
    """up to this many; to others it says that it is busy."""
    first_byte_s: float = math.inf
    """The time limits of the gateway's end of an exchange, as `app.engines.http` has them."""
    idle_s: float = math.inf
    clock: Clock = time.monotonic
    """The one by which calls expire."""

    not_ready: EngineError | None = None
    """Raised when it is asked for its models."""

    works: list[Work] = field(default_factory=list)
    """For every call, in the order in which they came."""
    running: int = 0
    """Calls inside the engine, those that wait there included."""
    dead: bool = False

    def __post_init__(self) -> None:
        self._inside: dict[int, Exchange] = {}
        self._gate = asyncio.Semaphore(self.slots) if self.slots is not None else None
        self._awake = asyncio.Event()
        self._awake.set()

    @property
    def calls(self) -> list[Call]:
        return [work.call for work in self.works]

    @property
    def aborted(self) -> int:
        """Calls that were left by whoever asked, before the end."""
        return sum(work.end is End.ABORTED for work in self.works)

    # --- its life -------------------------------------------------------------------------------------------------

    def die(self) -> None:
        """As a killed process does: what runs breaks off, and nobody can connect."""
        self.dead = True
        for exchange in self._inside.values():
            exchange.cut()

    def revive(self) -> None:
        self.dead = False

    def freeze(self) -> None:
        """As a stopped process does: connections stand, and nothing comes."""
        self._awake.clear()

    def thaw(self) -> None:
        self._awake.set()

    # --- what the gateway asks of an engine -----------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        work = Work(call, self if self.script is None else self.script(call), self.clock())
        exchange = Exchange(work, self.clock, self.first_byte_s, self.idle_s, self._awake, self.go_on)
        self.works.append(work)
        if refusal := self._refusal(work.script):
            work.finish(End.REFUSED, self.clock(), refusal)
            raise refusal
        self.running += 1
        self._inside[id(work)] = exchange
        try:
            async with self._slot(exchange), aclosing(exchange.blocks()) as blocks:
                yield blocks
        finally:
            del self._inside[id(work)]
            self.running -= 1
            work.finish(End.ABORTED, self.clock())

    def _refusal(self, script: Script) -> EngineError | None:
        if self.dead:
            return EngineUnreachable()
        if script.refuse_with is not None and self.refusals > 0:
            self.refusals -= 1
            return script.refuse_with
        if self.slots is not None and self.running - self.slots >= self.places:
            return EngineBusy(retry_after=1.0)
        return None

    @asynccontextmanager
    async def _slot(self, exchange: Exchange) -> AsyncIterator[None]:
        if self._gate is None:
            yield
            return
        await exchange.wait(self._gate.acquire())
        try:
            yield
        finally:
            self._gate.release()

    async def models(self) -> dict[str, int | None]:
        await self._answers()
        return self.serves

    async def load(self) -> Load | None:
        await self._answers()
        at_work = self.running if self.slots is None else min(self.running, self.slots)
        return Load(waiting=self.running - at_work, running=at_work, kv_share=None)

    async def _answers(self) -> None:
        if self.dead:
            raise EngineUnreachable
        try:
            async with asyncio.timeout(None if self.first_byte_s == math.inf else self.first_byte_s):
                await self._awake.wait()
        except TimeoutError:
            raise EngineSilent from None
        if self.not_ready is not None:
            raise self.not_ready

    async def aclose(self) -> None:
        """Nothing is held."""
