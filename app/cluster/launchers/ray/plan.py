"""How many workers, under which names, and what to say of it: decided from values, before anything is placed."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import count, islice
from urllib.parse import urlsplit

from app.clock import Clock

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LONG_LIFE_S = 60.0
"""A worker that lived so long died of something new: its deaths are counted from one again."""

WAITS_S = 3.0
"""After which it is said that workers wait: one that was just asked for waits too."""

ROUNDING = 1e-6


@dataclass(frozen=True)
class Node:
    id: str
    address: str
    resources: Mapping[str, float]
    """All that it has, taken or free."""

    def room(self, need: Mapping[str, float]) -> int:
        """For how many workers there would be room, were it empty."""
        return min(int(self.resources.get(name, 0.0) / amount + ROUNDING) for name, amount in need.items())


@dataclass(frozen=True)
class Changes:
    add: tuple[int, ...]
    drop: tuple[int, ...]


def changes(wanted: int | None, nodes: Iterable[Node], need: Mapping[str, float], seats: Mapping[int, bool]) -> Changes:
    """Seats to add and to drop. `seats`: the number of each that there is, and whether it has a place.

    A seat that has a place keeps it. A new one gets the lowest number that is free, hence the name of one that left:
    gateways know by the name what a worker served.
    """
    target = sum(node.room(need) for node in nodes) if wanted is None else wanted
    unplaced = sorted((number for number, placed in seats.items() if not placed), reverse=True)
    return Changes(
        add=tuple(islice(_free(seats), max(0, target - len(seats)))),
        drop=tuple(unplaced[: max(0, len(seats) - target)]),
    )


def _free(taken: Collection[int]) -> Iterator[int]:
    return (number for number in count() if number not in taken)


@dataclass
class Deaths:
    """Of one seat's workers: how long to wait before the next."""

    clock: Clock = time.monotonic
    _in_a_row: int = 0
    _again_at: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.clock() >= self._again_at

    def pause_after(self, lived_s: float) -> float:
        self._in_a_row = 1 if lived_s >= LONG_LIFE_S else self._in_a_row + 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._in_a_row - 1, 10))
        self._again_at = self.clock() + pause_s
        return pause_s


@dataclass
class Waiting:
    """Says once that some workers have no place, and not again until their number is another."""

    need: Mapping[str, float]
    clock: Clock = time.monotonic
    _seen: tuple[int, int] | None = None
    _since: float = 0.0
    _said: bool = field(default=False)

    def sentence(self, placed: int, of: int) -> str | None:
        if self._seen != (placed, of):
            self._seen, self._since, self._said = (placed, of), self.clock(), False
        if self._said or placed == of > 0 or self.clock() - self._since < WAITS_S:
            return None
        self._said = True
        room = f"a node with {in_words(self.need)} free"
        return f"{placed} of {of} workers have a place; the others wait for {room}." if of else f"Waiting for {room}."


def in_words(need: Mapping[str, float]) -> str:
    """`2 GPUs and 1 CPU`."""
    parts = [f"{amount:g} {name}{'s' * (amount != 1 and name in ('GPU', 'CPU'))}" for name, amount in need.items()]
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def cannot_reach(node: str, gateways: Iterable[str], here: str) -> bool:
    """All gateways listen on this machine's loopback only, and the node is another machine."""
    return (
        node != here and not _is_loopback(node) and all(_is_loopback(urlsplit(url).hostname or "") for url in gateways)
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
