"""An engine that does as it is told: it paces, stalls, fails and breaks off on demand.

For what a real engine will not produce when asked: tests of faults and timing, drills, the self-test.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.engines import dialects
from app.errors import EngineBroken, EngineError
from app.generation import Call, Usage
from app.reliability.limit import Load


@dataclass
class Scripted:
    """Answers each call with `words`, one event a word, in the dialect of its endpoint."""

    words: tuple[str, ...] = ("Hello", ",", " world", ".")
    serves: dict[str, int | None] = field(default_factory=lambda: {"demo": 2_048})
    refuse_with: EngineError | None = None
    """Raised on entering, instead of an answer."""
    refusals: float = math.inf
    """How many calls are refused before the engine answers again."""
    break_at: int | None = None
    """Break off after this many events."""
    break_with: type[EngineError] = EngineBroken
    stall_at: int | None = None
    """After this many events wait for `go_on`, which may never come."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    tells_usage: bool = True
    ends_properly: bool = True

    calls: list[Call] = field(default_factory=list)
    running: int = 0
    aborted: int = 0

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        self.calls.append(call)
        if self.refuse_with is not None and self.refusals > 0:
            self.refusals -= 1
            raise self.refuse_with
        finished = False
        blocks = self._blocks(call)
        self.running += 1

        async def answer() -> AsyncIterator[bytes]:
            nonlocal finished
            for index, block in enumerate(blocks):
                if index == self.stall_at:
                    await self.go_on.wait()
                if index == self.break_at:
                    raise self.break_with
                await asyncio.sleep(0)
                yield block
            finished = True

        try:
            yield answer()
        finally:
            self.running -= 1
            self.aborted += not finished

    def _blocks(self, call: Call) -> Iterator[bytes]:
        usage = Usage(7, len(self.words)) if self.tells_usage else None
        if not call.stream:
            return iter([dialects.whole(call, self.words, usage)])
        events = list(dialects.events(call, self.words, usage))
        return iter(events if self.ends_properly else events[:-1])

    async def models(self) -> dict[str, int | None]:
        return self.serves

    async def load(self) -> Load | None:
        return Load(waiting=0, running=self.running, kv_share=None)

    async def aclose(self) -> None:
        """Nothing is held."""
