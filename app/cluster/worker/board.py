"""Where a worker's status stands: whoever wants to know looks, and a look may wait for a change."""

import asyncio
from typing import Any

import msgspec

from app.cluster.control import Order, Progress, Status, WorkerState
from app.cluster.worker.speech import part_of

SAID_CHARS = 500
"""Of a line of an engine, in a status that is sent again and again."""

UP = (WorkerState.READY, WorkerState.DRAINING)


class Board:
    def __init__(self, first: Status) -> None:
        self.now = first
        self._changed = asyncio.Event()

    @property
    def is_up(self) -> bool:
        return self.now.state in UP

    def change(self, **fields: Any) -> None:
        """The words of `Status`; what stays as it was is no change."""
        after: Status = msgspec.structs.replace(self.now, **fields)
        if after != self.now:
            self.now = msgspec.structs.replace(after, version=self.now.version + 1)
            self._changed.set()
            self._changed = asyncio.Event()

    async def look(self, after: int, wait_s: float) -> Status:
        """After a worker's last word nobody waits for another one."""
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                while self.now.version == after and self.now.state is not WorkerState.STOPPED:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.now

    # --- what there is to say ------------------------------------------------------------------------------------

    def makes_way(self, reason: str, coming: tuple[str, ...] = ()) -> None:
        progress = Progress(step="draining")
        self.change(state=WorkerState.DRAINING, progress=progress, reason=reason, coming=coming)

    def begins(self, order: Order, names: tuple[str, ...], step: str, **more: Any) -> None:
        more |= {"order": order, "names": names, "coming": (), "progress": Progress(step=step)}
        self.change(state=WorkerState.LOADING, **more)

    def step(self, step: str) -> None:
        self.change(progress=Progress(step=step))

    def heard(self, line: str) -> None:
        """From an engine. While it loads, that says how far it is."""
        progress = self.now.progress
        if self.now.state is not WorkerState.LOADING or progress is None:
            return
        step = "loading" if progress.step == "starting" else progress.step
        told = part_of(line)
        part = progress.part if told is None else told
        self.change(progress=Progress(step=step, part=part, said=line[:SAID_CHARS]))

    def serves(self, names: tuple[str, ...], *, kept_out: bool, **more: Any) -> None:
        state = WorkerState.DRAINING if kept_out else WorkerState.READY
        self.change(state=state, names=names, progress=None, reason="", **more)

    def has_nothing(self, state: WorkerState, reason: str) -> None:
        nothing: dict[str, Any] = {"order": None, "names": (), "coming": (), "adapters": ()}
        self.change(state=state, reason=reason, progress=None, engine_url=None, **nothing)

    def failed(self, reason: str) -> None:
        self.change(state=WorkerState.FAILED, reason=reason, progress=None, engine_url=None, adapters=())

    def stopped(self) -> None:
        self.change(state=WorkerState.STOPPED, reason="", progress=None, engine_url=None)
