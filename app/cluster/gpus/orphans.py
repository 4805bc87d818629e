"""What a killed worker and its killed keeper have left behind: found by what stands in its environment, and ended.

Whoever holds a lease knows that no living worker has what it is on. So all that carries the lease's marker, and is not
its own, is an orphan: an engine's helper that was given to init, for one.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from app.clock import Clock
from app.cluster.gpus.lease import MARKER, Lease

POLL_S = 0.05
LIMIT_S = 10.0
PROC = Path("/proc")
PREFIX = f"{MARKER}=".encode()


@dataclass(frozen=True)
class Orphan:
    pid: int
    command: str


class Immortal(Exception):
    """The text is a sentence: who could not be ended."""


async def end_orphans(
    lease: Lease,
    *,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tuple[Orphan, ...]:
    """Before anything of ours is started. Returns those that were found, once they are gone."""
    keys = {hold.key for hold in lease.holds}
    until = clock() + LIMIT_S
    ended: dict[int, Orphan] = {}
    while found := orphans(keys):
        if clock() >= until:
            left = ", ".join(f"{each.pid} ({each.command})" for each in found)
            raise Immortal(f"Processes that an earlier worker left could not be ended: {left}.")
        for each in found:
            ended.setdefault(each.pid, each)
            with suppress(ProcessLookupError, PermissionError):  # who may not be ended is named below
                os.kill(each.pid, signal.SIGKILL)
        await sleep(POLL_S)
    return tuple(ended.values())


def orphans(keys: AbstractSet[str]) -> list[Orphan]:
    """All who carry one of these, but ourselves."""
    if sys.platform != "linux":
        return []
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]
    return [Orphan(pid, _command(pid)) for pid in pids if pid != os.getpid() and not keys.isdisjoint(held_by(pid))]


def held_by(pid: int) -> AbstractSet[str]:
    """What the marker of this process says. A zombie has no environment any more; others' may not be read."""
    with suppress(OSError):
        return _marked(_environment(pid))
    return frozenset()


def is_anothers(pid: int, keys: AbstractSet[str]) -> bool:
    """It lives, and carries none of these. Of a process that is just ending, or has ended, nobody can say that."""
    with suppress(OSError):
        if environment := _environment(pid):
            return keys.isdisjoint(_marked(environment))
    try:
        return (PROC / str(pid)).stat().st_uid != os.geteuid()  # ours can be read, as long as they have one
    except OSError:
        return False


def _environment(pid: int) -> bytes:
    return (PROC / str(pid) / "environ").read_bytes()


def _marked(environment: bytes) -> AbstractSet[str]:
    for entry in environment.split(b"\0"):
        if entry.startswith(PREFIX):
            return frozenset(map(unquote, entry.removeprefix(PREFIX).decode(errors="replace").split()))
    return frozenset()


def _command(pid: int) -> str:
    with suppress(OSError):
        return (PROC / str(pid) / "comm").read_text().strip()
    return "gone"
