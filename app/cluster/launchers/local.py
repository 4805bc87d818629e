"""Engines as child processes of the gateway: started, watched, started again when they die, and stopped.

    async with LocalLauncher(settings.engine, state_dir, on_change=..., on_progress=...) as launcher:
        await launcher.started()

Entering begins to start them all; leaving ends them all, and returns when nothing of them is left.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential

from app.clock import Clock
from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.plan import HOST, Build, Launch, Machine, doubt, missing, plan
from app.cluster.launchers.ports import Ports
from app.cluster.launchers.process import EngineProcess
from app.settings import Engine

log = logging.getLogger("gllm")

GRACE_S = 10.0
"""From SIGTERM to SIGKILL. The gateway has drained by then: nothing is left to finish."""

POLL_S = 0.1
LONG_LIFE_S = 60.0
"""An engine that was ready for so long died of something new: its deaths are counted from one again."""

TRIES = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DIED = "died"
    """It will be started again after a pause."""
    FAILED = "failed"
    """It cannot be brought up, and nobody tries any more."""
    STOPPED = "stopped"


@dataclass(frozen=True)
class LocalEngine:
    name: str
    base_url: str
    state: State = State.STARTING
    reason: str = ""
    starts: int = 0
    was_ready: bool = False


class EngineLost(Exception):
    """The text is a sentence; `tail` is what the engine itself said last."""

    def __init__(self, message: str, tail: list[str]) -> None:
        self.tail = tail
        super().__init__(message)


class EngineDidNotStart(EngineLost):
    pass


class EngineDied(EngineLost):
    """It was ready, and ended without being told to."""


OnChange = Callable[[LocalEngine], None]
OnProgress = Callable[[str, str], None]
"""An engine's name, and a line that it said, or that is said about it."""


class LocalLauncher:
    def __init__(
        self,
        engine: Engine,
        state_dir: Path,
        *,
        on_change: OnChange = lambda engine: None,
        on_progress: OnProgress = lambda name, line: None,
        build: Build | None = None,
        clock: Clock = time.monotonic,
        first_pause_s: float = FIRST_PAUSE_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._engine = engine
        self._logs = state_dir / "logs"
        self._on_change = on_change
        self._on_progress = on_progress
        self._build = build
        self._clock = clock
        self._pauses = wait_exponential(multiplier=first_pause_s, max=LONGEST_PAUSE_S)
        self._grace_s = grace_s
        self._engines: dict[str, LocalEngine] = {}
        self._failure: EngineLost | None = None
        self._changed = asyncio.Event()

    @property
    def engines(self) -> tuple[LocalEngine, ...]:
        return tuple(self._engines.values())

    async def started(self) -> None:
        """Returns when every engine is ready; raises `EngineLost` as soon as one cannot become so."""
        while not all(engine.state is State.READY for engine in self.engines):
            if self._failure:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        if self._build is None and (lacking := missing(self._engine)):
            raise EngineDidNotStart(lacking, [])
        if self._build is None and (doubtful := doubt(self._engine)):
            log.warning("%s", doubtful)
        async with AsyncExitStack() as stack:
            ports = Ports(HOST, self._engine.port_start)
            stack.callback(ports.close)
            launches = plan(self._engine, Machine.here(), ports, self._build)
            for port in ports.skipped:
                self._on_progress(launches[0].name, f"Port {port} is taken; trying the next.")
            self._http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=2.0))
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._engines = {each.name: LocalEngine(each.name, each.base_url) for each in launches}
            self._keepers = [tasks.create_task(self._keep(launch)) for launch in launches]
            stack.push_async_callback(self._end)
            self._leave = stack.pop_all().__aexit__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._leave(kind, error, tb)

    async def _end(self) -> None:
        """Cancelled once, an engine is stopped; cancelled twice, it is killed. So it is with us."""
        for keeper in self._keepers:
            keeper.cancel()
        try:
            await asyncio.wait(self._keepers)
        except asyncio.CancelledError:
            for keeper in self._keepers:
                keeper.cancel()
            raise

    async def _keep(self, launch: Launch) -> None:
        """Start it, and again when it dies, until it cannot be brought up or nobody wants it any more."""
        lives = AsyncRetrying(
            retry=retry_if_exception(lambda error: self._is_worth_another_try(launch, error)),
            stop=stop_after_attempt(TRIES),
            wait=self._pauses,
            before_sleep=lambda state: self._died(launch, state),
            reraise=True,
        )
        try:
            while True:
                await lives(self._live, launch)
        except EngineLost as lost:
            self._failure = lost
            self._became(launch, State.FAILED, str(lost))
        except asyncio.CancelledError:
            self._became(launch, State.STOPPED)
            raise

    async def _live(self, launch: Launch) -> None:
        """One life, from its start to its death. Only a long one ends without an error."""
        self._became(launch, State.STARTING)
        log = LogFile(self._logs / f"{launch.name}.log")
        try:
            async with await self._spawn(launch, log) as process:
                await self._until_ready(launch, process)
                self._became(launch, State.READY)
                ready_at = self._clock()
                code = await process.wait()
                lived_s = self._clock() - ready_at
        finally:
            log.close()
        died = EngineDied(f"{launch.name} ended by itself: {ending(code)}.", process.tail)
        if lived_s < LONG_LIFE_S:
            raise died
        self._became(launch, State.DIED, str(died))

    async def _spawn(self, launch: Launch, log: LogFile) -> EngineProcess:
        try:
            return await EngineProcess.start(
                launch.argv,
                {**launch.env_defaults, **os.environ, **launch.env},
                log=log,
                told=lambda line: self._on_progress(launch.name, line),
                grace_s=self._grace_s,
            )
        except OSError as error:
            raise EngineDidNotStart(f"{launch.name} could not be started: {error.strerror}.", []) from error

    async def _until_ready(self, launch: Launch, process: EngineProcess) -> None:
        allowed_s = self._engine.start_timeout_s
        try:
            async with asyncio.timeout(allowed_s):
                while not await self._is_ready(launch):
                    if process.ended:
                        code = await process.wait()
                        raise EngineDidNotStart(f"{launch.name} did not start: {ending(code)}.", process.tail)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            sentence = f"{launch.name} was not ready after {allowed_s:g} s (ENGINE_START_TIMEOUT)."
            raise EngineDidNotStart(sentence, process.tail) from None

    async def _is_ready(self, launch: Launch) -> bool:
        try:
            return (await self._http.get(f"{launch.base_url}/health")).status_code == 200
        except httpx.HTTPError:
            return False

    def _is_worth_another_try(self, launch: Launch, error: BaseException) -> bool:
        """One that has never been ready has a reason that repetition does not cure."""
        return isinstance(error, EngineLost) and self._engines[launch.name].was_ready

    def _died(self, launch: Launch, state: RetryCallState) -> None:
        lost = state.outcome and state.outcome.exception()
        pause_s = state.next_action.sleep if state.next_action else 0.0
        self._became(launch, State.DIED, f"{lost} It is started again in {pause_s:.1f} s.")

    def _became(self, launch: Launch, state: State, reason: str = "") -> None:
        known = self._engines[launch.name]
        self._engines[launch.name] = now = replace(
            known,
            state=state,
            reason=reason,
            starts=known.starts + (state is State.STARTING),
            was_ready=known.was_ready or state is State.READY,
        )
        self._changed.set()
        self._on_change(now)


def ending(code: int) -> str:
    """An exit code in words."""
    if code > 128:
        with suppress(ValueError):
            return f"killed by {signal.Signals(code - 128).name}"
    return f"exit code {code}"
