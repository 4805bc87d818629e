"""Exclusive leases, on GPUs and on a worker's own name, against every other worker on this machine.

A lease is a name in Linux' abstract socket space (ADR 16): bound once at a time, for all users, and free when the last
process that holds its descriptor is gone, however it went. The keeper of an engine holds it too: a GPU is not free
while an engine is still being ended.
"""

import asyncio
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from app.clock import Clock
from app.cluster.gpus.inventory import Gpu

MARKER = "GLLM_HOLDS"
"""In the environment of everything that runs under a lease: what that lease is on."""

POLL_S = 0.1
DYING_S = 20.0
"""So long may the keeper of a dead worker take to end its engine."""

PEER = struct.Struct("3i")


@dataclass(frozen=True, order=True)
class Hold:
    """What a lease can be on."""

    key: str
    shown: str

    @classmethod
    def on_gpu(cls, gpu: Gpu) -> "Hold":
        return cls(f"gpu:{gpu.uuid}", gpu.shown)

    @classmethod
    def on_worker(cls, name: str) -> "Hold":
        return cls(f"worker:{name}", f"The name {name}")


class Taken(Exception):
    """Somebody else has it. The text is a sentence."""

    def __init__(self, hold: Hold, holder: int | None) -> None:
        self.holder = holder
        self.dying = holder is None or not Path(f"/proc/{holder}").exists()
        """Whoever took it is dead, and what it started is being ended."""
        whom = "a worker that has ended, whose engine has not yet" if self.dying else f"process {holder}"
        super().__init__(f"{hold.shown} is in use by {whom}{_words_of(holder)}.")


class Lease:
    """All of it or nothing. Leaving the block gives back our part; a keeper that has it too keeps its own."""

    def __init__(self, holds: tuple[Hold, ...], sockets: list[socket.socket]) -> None:
        self.holds = holds
        self._sockets = sockets

    @classmethod
    def take(cls, holds: Iterable[Hold]) -> "Lease":
        """Raises `Taken`, and has nothing then."""
        lease = cls(tuple(sorted(set(holds))), [])
        try:
            for hold in lease.holds:
                lease._sockets += _bound(hold)
        except BaseException:
            lease.close()
            raise
        return lease

    @property
    def descriptors(self) -> tuple[int, ...]:
        """For the keeper."""
        return tuple(each.fileno() for each in self._sockets)

    @property
    def marker(self) -> dict[str, str]:
        """For the environment of whatever runs under it."""
        return {MARKER: " ".join(hold.key for hold in self.holds)}

    def close(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


async def taken(
    holds: Iterable[Hold],
    *,
    dying_s: float = DYING_S,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Lease:
    """A lease, once those that are being ended are gone. One that is used is refused at once."""
    wanted = tuple(holds)
    until = clock() + dying_s
    while True:
        try:
            return Lease.take(wanted)
        except Taken as error:
            if not error.dying or clock() >= until:
                raise
        await sleep(POLL_S)


def _bound(hold: Hold) -> list[socket.socket]:
    """Listening, so that who comes second learns the pid of the first. Nobody is ever accepted."""
    if not hasattr(socket, "SO_PEERCRED"):  # beyond Linux there is no such space, and no lease
        return []
    name = f"\0gllm-{hold.key}"
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(name)
        held.listen()
    except OSError:
        held.close()
        raise Taken(hold, _holder_of(name)) from None
    return [held]


def _holder_of(name: str) -> int | None:
    """The process that listened. `None` where it cannot be asked: it is going just now, or many ask."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(name)
        except OSError:
            return None
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    pid: int = PEER.unpack(credentials)[0]
    return pid


def _words_of(pid: int | None) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return f" ({' '.join(map(os.path.basename, words[:4])).strip()})"
    return ""
