"""One of the processes that a cluster is made of: kept, watched, and started again when it dies."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from app.clock import Clock
from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.losses import ending
from app.cluster.launchers.process import EngineProcess

GLLM: tuple[str, ...] = (sys.executable, "-P", "-m", "gllm.cli")
"""-P: a `gllm` where the user stands is not ours."""

ROOT = Path(__file__).parents[2]

START_WITHIN_S = 180.0
"""It only has to listen: models are loaded later."""

POLL_S = 0.1
LONG_LIFE_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(frozen=True)
class Program:
    name: str
    words: tuple[str, ...]
    """Of its command line, after `gllm`."""
    probe: str
    """Where it answers once it is up, with whatever status."""
    grace_s: float
    """From SIGTERM to SIGKILL."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Set whatever our own environment says. Secrets travel here, never among the words."""
    env_defaults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """One that could not be started."""

    reason: str
    tail: tuple[str, ...]


class Child:
    def __init__(
        self,
        program: Program,
        logs: Path,
        *,
        told: Callable[[str], None],
        noted: Callable[[str], None],
        clock: Clock = time.monotonic,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        """`told`: a line of its own; `noted`: a sentence about it."""
        self.program = program
        self.up = asyncio.Event()
        self.lost: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()
        self._log = logs / f"{program.name}.log"
        self._told = told
        self._noted = noted
        self._clock = clock
        self._first_pause_s = first_pause_s

    async def keep(self, http: httpx.AsyncClient) -> None:
        """Cancelling is the way to end it, and what it started; returns by itself only if it has never come up."""
        deaths = 0
        while True:
            reason, lived_s, tail = await self._live(http)
            if not self.up.is_set():
                self.lost.set_result(Lost(reason, tail))
                return
            deaths = 1 if lived_s > LONG_LIFE_S else deaths + 1
            pause_s = min(self._first_pause_s * 2 ** (deaths - 1), LONGEST_PAUSE_S)
            self._noted(f"{reason} It is started again in {pause_s:g} s.")
            await asyncio.sleep(pause_s)

    async def _live(self, http: httpx.AsyncClient) -> tuple[str, float, tuple[str, ...]]:
        """One life: how it ended, how long it was up, and its last words."""
        log = LogFile(self._log)
        try:
            async with await self._spawn(log) as process:
                began = self._clock()
                if not await self._comes_up(process, http):
                    return f"{self.program.name} did not answer within {START_WITHIN_S:g} s.", 0.0, _words(process)
                up_before, up_at = self.up.is_set(), self._clock()
                if not process.ended:
                    self.up.set()
                    if up_before:
                        self._noted(f"{self.program.name} is back after {up_at - began:.1f} s.")
                code = await process.wait()
                how = "ended by itself" if self.up.is_set() else "did not start"
                return f"{self.program.name} {how}: {ending(code)}.", self._clock() - up_at, _words(process)
        except OSError as error:
            return f"{self.program.name} could not be started: {error.strerror}.", 0.0, ()
        finally:
            log.close()

    async def _spawn(self, log: LogFile) -> EngineProcess:
        at_home = {"PYTHONPATH": str(ROOT)} if ROOT.name not in ("site-packages", "dist-packages") else {}
        program = self.program
        return await EngineProcess.start(
            (*GLLM, *program.words),
            {**at_home, "PYTHONUNBUFFERED": "1", **program.env_defaults, **os.environ, **program.env},
            log=log,
            told=self._told,
            grace_s=program.grace_s,
        )

    async def _comes_up(self, process: EngineProcess, http: httpx.AsyncClient) -> bool:
        """Or ends; `False` if neither."""
        try:
            async with asyncio.timeout(START_WITHIN_S):
                while not await answers(http, self.program.probe):
                    if process.ended:
                        break
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return False
        return True


async def answers(http: httpx.AsyncClient, url: str) -> bool:
    try:
        await http.get(url)
    except httpx.HTTPError:
        return False
    return True


def _words(process: EngineProcess) -> tuple[str, ...]:
    return tuple(process.tail)
