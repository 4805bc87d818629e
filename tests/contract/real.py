"""A real engine process under the contract, reached as the gateway reaches it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.engines.http import HttpEngine, Timeouts
from app.reliability.watch import Watch
from tests.contract.rig import Rig, sweeping
from tests.support.processes import EngineSite


class RealRig(Rig):
    """It has no faults to order: those tests are skipped."""

    def __init__(self, process: EngineSite) -> None:
        self.process = process
        self.watch = Watch(time.monotonic)
        self.engine: HttpEngine = HttpEngine(process.url, watch=self.watch, timeouts=Timeouts(5, 5, 5, 30))

    async def running(self) -> int:
        return await asyncio.to_thread(self.process.at_work)


@asynccontextmanager
async def real(process: EngineSite) -> AsyncIterator[Rig]:
    rig = RealRig(process)
    async with sweeping(rig.watch):
        yield rig
    assert rig.engine.open_connections == 0
