"""Whether the memory of GPUs is back, after all that an engine was is gone: the driver may take a while."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from app.clock import Clock
from app.cluster.control import Released
from app.cluster.gpus.inventory import Gpu, Inventory
from app.cluster.gpus.lease import Lease
from app.cluster.gpus.orphans import held_by
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
        while missing := self._missing():
            if clock() >= until:
                raise NotReleased(f"After {limit_s:g} s {missing}.")
            await sleep(POLL_S)
        return Released(proved=True)

    def _missing(self) -> str:
        """What is not back yet, as a clause; empty when all is."""
        for gpu, before in self._before.items():
            now = self._inventory.memory(gpu)
            if before is None or now is None:
                return f"{gpu.shown} does not tell any more what is on it"
            new = {pid: taken for pid, taken in now.holders.items() if pid not in before.holders}
            ours = [pid for pid in new if not self._ours.isdisjoint(held_by(pid))]
            kept = now.used - before.used - sum(taken for pid, taken in new.items() if pid not in ours)
            if ours or kept > SLACK:
                by = f" with process {ours[0]}" if ours else ""
                return f"{kept / 2**30:.1f} GiB of {gpu.shown} are not back{by}"
        return ""
