"""The scripted engine under the contract."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.engines.scripted import Script, Scripted
from app.generation import Call
from tests.contract.rig import Fault, Rig

WORDS = ("Grüße", ", ", "你好", " ", "👋🏽")


class ScriptedRig(Rig):
    def __init__(self) -> None:
        self.engine: Scripted = Scripted(script=self._script)
        self.fault: Fault | None = None
        self.breaks = False

    def _script(self, call: Call) -> Script:
        """Stalls in a long answer only, and breaks off in the middle of either kind."""
        middle = 1 if call.stream else 0
        return Script(
            words=WORDS,
            refuse_with=self.fault.error() if self.fault else None,
            stall_at=middle if b'"ignore_eos": true' in call.body else None,
            break_at=middle if self.breaks else None,
        )

    async def running(self) -> int:
        return self.engine.running

    async def fails(self, fault: Fault | None) -> None:
        self.fault = fault
        self.engine.not_ready = fault.error() if fault else None

    async def breaks_off(self) -> None:
        self.breaks = True


@asynccontextmanager
async def scripted() -> AsyncIterator[Rig]:
    yield ScriptedRig()
