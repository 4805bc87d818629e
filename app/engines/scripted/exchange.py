"""One call inside the engine: its tokens in their time, and whatever its script has in store for it."""

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator

from app.clock import Clock
from app.engines.scripted import dialects
from app.engines.scripted.work import End, Work
from app.errors import DeadlinePassed, EngineBroken, EngineLost, EngineSilent, EngineStalled, GatewayError


class Exchange:
    def __init__(
        self, work: Work, clock: Clock, first_byte_s: float, idle_s: float, awake: asyncio.Event, go_on: asyncio.Event
    ) -> None:
        self.work = work
        self._clock = clock
        self._patience_s = first_byte_s if work.call.stream else math.inf
        """Unless streamed, the first byte comes when all is made."""
        self._idle_s = idle_s
        self._awake = awake
        self._go_on = go_on
        self._silent_since = work.began
        self._given = False
        self._cut = False
        self._limit: asyncio.Timeout | None = None

    def cut(self) -> None:
        """The engine died."""
        self._cut = True
        if self._limit is not None:
            self._limit.reschedule(-math.inf)

    async def wait(self, event: Awaitable[object]) -> None:
        """For as long as the engine lives, the call has time, and the gateway's end is patient with silence."""
        patience_ends = self._silent_since + self._patience_s
        left_s = min(self.work.call.expires_at, patience_ends) - self._clock()
        try:
            async with asyncio.timeout(None if left_s == math.inf else left_s) as self._limit:
                if self._cut:
                    self.cut()
                await event
        except TimeoutError:
            raise self._broken(self._verdict(patience_ends)) from None
        finally:
            self._limit = None

    async def blocks(self) -> AsyncGenerator[bytes, None]:
        script = self.work.script
        block, events, index = b"", 0, 0
        await self.wait(self._takes(script.first_after_s))
        for step in itertools.chain(self._steps(), [_NO_MORE]):
            if isinstance(step, str):
                await self.wait(self._takes(script.pace_s))
                self.work.made.append(step)
                continue
            block += step
            events += 1
            if block and (events == script.events_per_block or step is _NO_MORE):
                await self.wait(self._happens(index))
                self.work.gives(block)
                yield block
                self._given, self._patience_s, self._silent_since = True, self._idle_s, self._clock()
                block, events, index = b"", 0, index + 1
        if index in (script.stall_at, script.break_at):
            await self.wait(self._happens(index))
        self.work.finish(End.FINISHED, self._clock())

    def _steps(self) -> Iterator[str | bytes]:
        """Tokens to make, and events to send. Each is asked for when those before it are done."""
        work, script = self.work, self.work.script
        words: Iterable[str] = itertools.cycle(script.words) if script.endless else script.words
        call = work.call
        if not call.stream:
            yield from words
            yield dialects.whole(call, work.text, work.told_usage)
            return
        yield from dialects.begins(call, work.told_usage)
        for word in words:
            yield word
            yield dialects.says(call, word, work.told_usage if call.counts_along else None)
        events = dialects.ends(call, work.text, work.told_usage)
        yield from events if script.ends_properly else events[:-1]

    async def _takes(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._awake.wait()

    async def _happens(self, index: int) -> None:
        """Before a block leaves, and after the last."""
        script = self.work.script
        await self._awake.wait()
        if index == script.stall_at:
            await self._go_on.wait()
        if index == script.break_at:
            raise self._broken(script.break_with())
        await asyncio.sleep(0)

    def _broken(self, error: GatewayError) -> GatewayError:
        self.work.finish(End.BROKEN, self._clock(), error)
        return error

    def _verdict(self, patience_ends: float) -> GatewayError:
        if self._cut:
            return EngineBroken() if self._given else EngineLost()
        if self.work.call.expires_at <= patience_ends:
            return DeadlinePassed()
        return EngineStalled() if self._given else EngineSilent()


_NO_MORE = b""
