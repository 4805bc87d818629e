"""One life of an engine: a process from its start to its end, and what can be seen of it from outside."""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from app.clock import Clock
from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.losses import EngineDidNotStart, EngineDied, ending
from app.cluster.launchers.output import Told
from app.cluster.launchers.plan import Launch
from app.cluster.launchers.process import EngineProcess
from app.cluster.worker.contact import PROBE_S, Contact
from app.errors import EngineError, EngineOutOfReach
from app.reliability.watch import STOOD_STILL_S

WITHHELD = ("CLUSTER_SECRET",)
"""No business of an engine."""

IDLE_POLL_S = 0.25
AFTERMATH_S = 1.0
"""A crash closes connections before the process is gone."""


@dataclass(frozen=True)
class Pace:
    """How long things may take, in seconds."""

    start_s: float = 600.0
    """Until an engine must have loaded its model (ENGINE_START_TIMEOUT)."""
    try_s: float = 120.0
    """Until it must have answered its first request: some compile what they need only then."""
    poll_s: float = 0.1
    look_s: float = 5.0
    """Between two looks at an engine that is ready."""
    hung_s: float = 60.0
    """One that has not answered `/health` for so long never will. A busy one answers late, which is well enough."""
    grace_s: float = 6.0
    """From SIGTERM to SIGKILL. The engine is idle by then, or its time to become so is over."""
    headless_s: float = 3.0
    """An engine that serves no HTTP is taken for started when it has lived so long."""


class Life:
    """An `async with` block: entering starts the process, leaving ends it and all that it started."""

    def __init__(
        self,
        launch: Launch,
        log: Path,
        told: Told,
        pace: Pace,
        clock: Clock,
        *,
        headless: bool,
        held: Sequence[int] = (),
    ) -> None:
        """`held`: descriptors of the lease that it runs under."""
        self._launch = launch
        self._log = log
        self._told = told
        self._pace = pace
        self._clock = clock
        self._headless = headless
        self._held = held

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            log = LogFile(self._log)
            stack.callback(log.close)
            self.contact = await stack.enter_async_context(Contact(self._launch.base_url))
            self._process = await stack.enter_async_context(await self._started(log))
            self._leave = stack.pop_all().__aexit__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._leave(kind, error, tb)

    async def _started(self, log: LogFile) -> EngineProcess:
        env = {**self._launch.env_defaults, **os.environ, **self._launch.env}
        for name in WITHHELD:
            env.pop(name, None)
        try:
            return await EngineProcess.start(
                self._launch.argv, env, log=log, told=self._told, grace_s=self._pace.grace_s, held=self._held
            )
        except OSError as error:
            raise EngineDidNotStart(f"{self._launch.name} could not be started: {error.strerror}.", []) from error

    async def until_ready(self) -> None:
        try:
            async with asyncio.timeout(self._pace.headless_s if self._headless else self._pace.start_s):
                while self._headless or not await self._is_well(PROBE_S):
                    if self._process.ended:
                        code = await self._process.wait()
                        raise self._did_not_start(f"did not start: {ending(code)}.")
                    await asyncio.sleep(self._pace.poll_s)
        except TimeoutError:
            if not self._headless:
                allowed = f"{self._pace.start_s:g} s (ENGINE_START_TIMEOUT)"
                raise self._did_not_start(f"was not ready after {allowed}.") from None

    async def try_out(self, names: tuple[str, ...], *, any_name: bool) -> tuple[str, ...]:
        """A request of our own, before anybody else's. The names that it answers to: those, or if `any_name` is well
        enough whatever it lists.
        """
        if self._headless:
            return names
        try:
            listed = await self.contact.names()
        except EngineError as error:
            raise self._did_not_start(f"does not list its models: {error.message}") from error
        if missing := [name for name in names if name not in listed]:
            if not (any_name and listed):
                raise self._did_not_start(f"does not serve {', '.join(missing)}.")
            names = listed
        if fault := await self.contact.try_out(names[0], self._pace.try_s):
            if await self.is_gone_within(AFTERMATH_S):
                await self.watch()
            raise self._did_not_start(f"has come up, but its first request {fault}.")
        return names

    async def watch(self) -> NoReturn:
        """Until it dies, or hangs, and must be taken for dead. What we lacked ourselves is not held against it,
        nor is a time in which we stood still."""
        look_s, hung_s, silent_s = self._pace.look_s, self._pace.hung_s, 0.0
        while not await self.is_gone_within(look_s):
            asked_at, patience_s = self._clock(), max(hung_s - silent_s, self._pace.poll_s)
            if self._headless or await self._is_well(patience_s, unasked=True):
                silent_s = 0.0
                continue
            waited_s = self._clock() - asked_at
            if waited_s <= patience_s + STOOD_STILL_S:
                silent_s += look_s + waited_s
            if silent_s >= hung_s and not self._process.ended:
                sentence = f"{self._launch.name} has not answered for {hung_s:g} s, and is ended."
                raise EngineDied(sentence, self._process.tail)
        code = await self._process.wait()
        raise EngineDied(f"{self._launch.name} ended by itself: {ending(code)}.", self._process.tail)

    async def _is_well(self, within_s: float, *, unasked: bool = False) -> bool:
        """`unasked`: what it is taken for while we cannot ask it."""
        try:
            return await self.contact.is_well(within_s)
        except EngineOutOfReach:
            return unasked

    async def until_idle(self, time_is_up: Callable[[], bool]) -> None:
        while not (time_is_up() or self._process.ended):
            if self._headless or await self.contact.at_work() == 0:
                return
            await self.is_gone_within(IDLE_POLL_S)

    async def is_gone_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._process.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _did_not_start(self, what: str) -> EngineDidNotStart:
        error = self._process.buried_error
        of_what = f" Its first error: {error}" if error else ""
        return EngineDidNotStart(f"{self._launch.name} {what}{of_what}", self._process.tail)
