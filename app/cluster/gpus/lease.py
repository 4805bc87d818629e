"""Exclusive leases, on GPUs and on a worker's own name, against every other worker on this machine.

A lease is a name in Linux' abstract socket space (ADR 16): bound once at a time, for all users, and free when the last
process that holds its descriptor is gone, however it went. The keeper of an engine holds it too: a GPU is not free
while an engine is still being ended.
"""

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from app.clock import Clock
from app.cluster.gpus.inventory import Gpu

MARKER = "GLLM_HOLDS"
"""In the environment of everything that runs under a lease: what that lease is on."""

KEEP_ENVIRON = {"SPT_NOENV": "1"}
"""`setproctitle`, by which vLLM names its processes, writes over what others see of the environment, unless told so."""

POLL_S = 0.1
DYING_S = 20.0
"""So long may the keeper of a dead worker take to end its engine."""

PEER = struct.Struct("3i")
WORKER = "worker:"
LONGEST = 107
"""Bytes that the name of a socket may have."""

LINE = 4096
"""Who asks stays in the line, since nobody accepts; when it is full, the holder can no longer be asked."""


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
        return cls(f"{WORKER}{name}", f"The name {name}")


class Taken(Exception):
    """Somebody else has it. The text is a sentence."""

    def __init__(self, hold: Hold, holder: int | None, *, dying: bool) -> None:
        self.holder = holder
        """`None`: cannot be told, as where it is in another container."""
        self.dying = dying
        """Whoever took it is dead, and what it started is being ended."""
        whom = "a process that cannot be told" if holder is None else f"process {holder}"
        whom = "a worker that has ended, whose engine has not yet" if dying else whom
        super().__init__(f"{hold.shown} is in use by {whom}{_known_as(holder)}.")


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
        return {MARKER: " ".join(quote(hold.key, safe=":@") for hold in self.holds), **KEEP_ENVIRON}

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
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(_address(hold.key))
        held.listen(LINE)
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise _taken(hold) from None
    return [held]


def _address(key: str) -> bytes:
    name = f"\0gllm-{key}".encode()
    return name if len(name) <= LONGEST else f"\0gllm-{sha256(name).hexdigest()}".encode()


def _taken(hold: Hold) -> Taken:
    try:
        holder = _listener(_address(hold.key))
    except ConnectionRefusedError:  # it is coming or going just now
        return Taken(hold, None, dying=True)
    return Taken(hold, holder, dying=holder is not None and _has_ended(holder))


def _listener(address: bytes) -> int | None:
    """The process that listened, if it is known here. Raises `ConnectionRefusedError` where there is none."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        try:
            asking.connect(address)
        except BlockingIOError:  # the line is full
            return None
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    pid: int = PEER.unpack(credentials)[0]
    return pid or None  # 0: it is in another container


def _has_ended(pid: int) -> bool:
    """Even where nobody has buried it yet."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except ProcessLookupError:
        return True
    except OSError:  # another user's, which may be hidden from us
        return False


def _known_as(pid: int | None) -> str:
    """The name of the worker, where it may be looked up, or its command."""
    if pid is None:
        return ""
    with suppress(OSError):
        if worker := _worker_of(pid):
            return f" (worker {worker})"
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if command := " ".join(map(os.path.basename, words[:4])).strip():
            return f" ({command})"
    return ""


def _worker_of(pid: int) -> str:
    """A worker has a hold on its own name too: of all such names, the one among this process' descriptors."""
    mine = set(_links(Path(f"/proc/{pid}/fd")))
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        head, found, name = line.partition(f" @gllm-{WORKER}")
        if found and f"socket:[{head.split()[-1]}]" in mine:
            return name.partition("@")[0]
    return ""


def _links(folder: Path) -> Iterator[str]:
    for each in folder.iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(each)
