"""The scripted engine under the contract."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.engines.scripted import Scripted
from app.generation import Call
from tests.contract.rig import Fault, Rig


class Patient(Scripted):
    """Stalls in a long answer only, and breaks off in the middle of either kind."""

    breaks = False

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        middle = 1 if call.stream else 0
        self.stall_at = middle if b'"ignore_eos": true' in call.body else None
        self.break_at = middle if self.breaks else None
        async with super().open(call) as blocks:
            yield blocks

    async def models(self) -> dict[str, int | None]:
        if self.refuse_with is not None:
            raise self.refuse_with
        return await super().models()


class ScriptedRig(Rig):
    def __init__(self) -> None:
        self.engine: Patient = Patient(words=("Grüße", ", ", "你好", " ", "👋🏽"))

    async def running(self) -> int:
        return self.engine.running

    async def fails(self, fault: Fault | None) -> None:
        self.engine.refuse_with = fault.error() if fault else None

    async def breaks_off(self) -> None:
        self.engine.breaks = True


@asynccontextmanager
async def scripted() -> AsyncIterator[Rig]:
    yield ScriptedRig()
