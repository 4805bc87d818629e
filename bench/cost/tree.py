"""A process and all that came out of it: what they have used up to now, and what they hold."""

import os
from collections.abc import Iterator
from pathlib import Path

from bench.machine import TICKS

KIB = 1024


def tree(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, fields in _all():
        children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:  # it grows meanwhile
        found += children.get(pid, [])
    return found


def cpu_s(root: int) -> float:
    """User and system time of all threads, and of children that have ended and were waited for."""
    pids = set(tree(root))
    return sum(sum(map(int, fields[11:15])) for pid, fields in _all() if pid in pids) / TICKS


def memory(root: int) -> int:
    """Bytes. What processes share is counted once (PSS)."""
    return sum(_proportional(pid) for pid in tree(root))


def busy_s() -> float:
    """Of all cores of this machine."""
    user, nice, system, _, _, irq, soft, steal = map(int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


def _all() -> Iterator[tuple[int, list[str]]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield int(name), Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # gone meanwhile


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * KIB
