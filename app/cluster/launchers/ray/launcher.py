"""Workers on the nodes of a Ray cluster: placed, followed from node to node, and ended with us.

    async with RayLauncher(Wanted(workers=4, env={"GATEWAY_URLS": url}), state_dir, on_change=...):
        ...

Entering connects, and begins to place workers; from then on they register with the gateways by themselves. Leaving ends
them all, and returns when they are gone.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.losses import ending
from app.cluster.launchers.plan import ROOT
from app.cluster.launchers.process import EngineProcess
from app.cluster.launchers.ray import words
from app.cluster.launchers.ray.address import NoCluster, knock, resolved
from app.cluster.launchers.ray.words import Connected, Lacking, Said, Seat, State, Wanted

CONNECT_S = 60.0
GRACE_S = 8.5
"""For the driver, which gives its workers 6 of them. So all is over within 10."""

AGAIN_S = 5.0
"""After a cluster that was there is lost, until it is looked for again."""

OnChange = Callable[[Seat], None]
OnSaid = Callable[[str], None]


class RayLacks(Exception):
    """There is nothing to place workers with. The text is a sentence."""


class RayLauncher:
    def __init__(
        self,
        wanted: Wanted,
        state_dir: Path,
        *,
        on_change: OnChange = lambda seat: None,
        on_said: OnSaid = lambda sentence: None,
        connect_s: float = CONNECT_S,
        again_s: float = AGAIN_S,
    ) -> None:
        self._wanted = msgspec.structs.replace(wanted, address=resolved(wanted.address, os.environ))
        self._log = state_dir / "logs" / "ray.log"
        self._on_change = on_change
        self._on_said = on_said
        self._connect_s = connect_s
        self._again_s = again_s
        self._seats: dict[str, Seat] = {}
        self._lacking = self._lost_by = ""
        self._connecting: asyncio.Timeout | None = None

    @property
    def seats(self) -> tuple[Seat, ...]:
        return tuple(self._seats.values())

    async def __aenter__(self) -> Self:
        if not find_spec("ray"):
            raise RayLacks("--launcher ray needs Ray beside gllm: install the extra 'ray' of this package.")
        if self._wanted.workers is None and not self._wanted.gpus:
            raise RayLacks("Workers without GPUs are not counted by GPUs: say how many workers there are to be.")
        async with AsyncExitStack() as stack:
            log = LogFile(self._log)
            stack.callback(log.close)
            self._first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._keeping = tasks.create_task(self._keep(log))
            stack.push_async_callback(self._end)
            lacking = await self._first
            if not lacking:
                self._leave = stack.pop_all().aclose
                return self
        raise RayLacks(lacking)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._leave()

    async def _end(self) -> None:
        """Cancelled once, the driver ends its workers and gives everything back; cancelled twice, Ray does."""
        self._keeping.cancel()
        try:
            await asyncio.wait([self._keeping])
        except asyncio.CancelledError:
            self._keeping.cancel()
            raise

    async def _keep(self, log: LogFile) -> None:
        """Drive, and again when the cluster was lost. A first time that fails is the last."""
        while True:
            reason = await self._drive(log)
            if not self._first.done():
                self._first.set_result(reason)
                return
            self._lost(reason)
            await asyncio.sleep(self._again_s)

    async def _drive(self, log: LogFile) -> str:
        """One life of a driver. Returns why it ended: a sentence."""
        argv = (sys.executable, "-P", "-m", "app.cluster.launchers.ray.driver")
        self._lacking = ""
        try:
            await knock(self._wanted.address)
            async with await EngineProcess.start(
                argv, self._env(), log=log, told=self._hear, grace_s=GRACE_S
            ) as process:
                return await self._until_ended(process)
        except NoCluster as error:
            return str(error)
        except OSError as error:
            return f"Ray could not be asked: {error.strerror}."

    async def _until_ended(self, process: EngineProcess) -> str:
        try:
            async with asyncio.timeout(self._connect_s) as self._connecting:
                code = await process.wait()
        except TimeoutError:
            return f"Ray did not answer within {self._connect_s:g} s."
        finally:
            self._connecting = None
        return self._lacking or f"The Ray job ended: {ending(code)}; see {self._log}."

    def _env(self) -> dict[str, str]:
        where = {"PYTHONPATH": str(ROOT)} if ROOT.name not in ("site-packages", "dist-packages") else {}
        wanted = {words.VARIABLE: msgspec.json.encode(self._wanted).decode()}
        return {"RAY_USAGE_STATS_ENABLED": "0", **where, **os.environ, **wanted}

    def _hear(self, line: str) -> None:
        match words.heard(line):
            case Seat() as seat:
                self._became(seat)
            case Said(text):
                self._on_said(text)
            case Lacking(reason):
                self._lacking = reason
            case Connected() if self._connecting and not self._connecting.expired():
                self._connecting.reschedule(None)
                self._lost_by = ""
                if not self._first.done():
                    self._first.set_result("")

    def _lost(self, reason: str) -> None:
        for seat in self.seats:
            self._became(Seat(name=seat.name, state=State.DROPPED))
        if reason != self._lost_by:
            self._on_said(f"{reason} The cluster is looked for again every {self._again_s:g} s.")
        self._lost_by = reason

    def _became(self, seat: Seat) -> None:
        if seat.state is State.DROPPED:
            self._seats.pop(seat.name, None)
        else:
            self._seats[seat.name] = seat
        self._on_change(seat)
