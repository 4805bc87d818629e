"""Who runs where: the gateway has a core for itself, and what asks and answers has another."""

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    gateway: int
    engine: int
    load: int

    @property
    def apart(self) -> bool:
        """Whether the gateway shares its core with nothing of ours."""
        return self.gateway not in (self.engine, self.load)


def shared_out(available: Sequence[int]) -> Cores:
    """Engine and load generator share a core where there are but two."""
    last = len(available) - 1
    return Cores(*(available[min(place, last)] for place in range(3)))


def of_this_machine() -> Cores:
    return shared_out(sorted(os.sched_getaffinity(0)))


def pinned(core: int, *command: str) -> list[str]:
    """Gone with us, however we end: some of what we start is frozen between its turns, and could not end itself."""
    return ["setpriv", "--pdeathsig", "KILL", "taskset", "--cpu-list", str(core), *command]
