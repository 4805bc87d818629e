"""Whether the memory of GPUs is back, after all that an engine was is gone: the driver may take a while."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from app.clock import Clock
from app.cluster.control import Released
from app.cluster.gpus.inventory import Gpu, Inventory, Memory
from app.cluster.gpus.lease import Lease
from app.cluster.gpus.orphans import is_anothers
from app.errors import NotReleased

POLL_S = 0.2
LIMIT_S = 30.0
SLACK = 64 * 2**20
"""A driver's own needs go up and down by so much."""


class Proof:
    """Made before an engine starts; asked when it is gone."""

    def __init__(self, inventory: Inventory, gpus: tuple[Gpu, ...], lease: Lease) -> None:
        self._inventory = inventory
        self._ours = {hold.key for hold in lease.holds}
        self._before = {gpu: inventory.memory(gpu) for gpu in gpus}

    async def released(
        self,
        *,
        limit_s: float = LIMIT_S,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> Released:
        """Raises `NotReleased`, with who has it, if it does not come back."""
        if not self._before:
            return Released(proved=True, note="It had no GPU.")
        if None in self._before.values():
            return Released(
                proved=False, note=self._inventory.lacking or "The driver does not tell what is on its GPUs."
            )
        until = clock() + limit_s
        while missing := await asyncio.to_thread(self._missing):
            if clock() >= until:
                raise NotReleased(f"After {limit_s:g} s {missing}.")
            await sleep(POLL_S)
        return Released(proved=True)

    def _missing(self) -> str:
        """What is not back yet, as a clause; empty when all is. In a thread, since the driver may take its time."""
        for gpu, before in self._before.items():
            now = self._inventory.memory(gpu)
            if before is None or now is None:
                return f"{gpu.shown} does not tell any more what is on it"
            if clause := not_back(gpu, before, now, lambda pid: is_anothers(pid, self._ours)):
                return clause
        return ""


def not_back(gpu: Gpu, before: Memory, now: Memory, is_anothers: Callable[[int], bool]) -> str:
    """Others come, go, grow and shrink meanwhile: what is known to be theirs counts neither before nor now.

    Who was there before is another; of newcomers only who is seen to be. One that has ended but is listed still was
    ours, as far as anybody can tell, and the driver has not cleaned up yet.
    """
    theirs = [pid for pid in now.holders if pid in before.holders or is_anothers(pid)]
    ours = [pid for pid in now.holders if pid not in theirs]
    kept = now.used - sum(now.holders[pid] for pid in theirs) - (before.used - sum(before.holders.values()))
    if not ours and kept <= SLACK:
        return ""
    by = ", ".join(f"process {pid} ({_gib(now.holders[pid])})" for pid in ours)
    return f"{_gib(max(0, kept))} of {gpu.shown} are not back{f' with {by}' if by else ''}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
