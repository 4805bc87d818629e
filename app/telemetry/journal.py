"""The last calls, kept so that each can be explained. What is kept is what the way through has written anyway; it is
explained (`explaining`) when somebody asks.
"""

import itertools
from collections import deque
from collections.abc import Iterator

import msgspec

from app.generation import Route
from app.telemetry.base import Backend
from app.telemetry.record import Record
from app.telemetry.story import Story

CALLS = frozenset(Route)

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Record).decode


class Journal(Backend):
    """Calls that engines answer, so that probes and pages push none of them out. What happens beside calls is in the
    log."""

    def __init__(self, most: int) -> None:
        """`most`: of those that have ended. Those that run are all here."""
        self.most = most
        self._running: dict[int, Record] = {}
        self._ended: deque[tuple[str, bytes | Record]] = deque(maxlen=most)
        """By id, packed: a thousand calls' objects would go round through the processor's caches, and each new call
        would be built from memory that is in none. That was a tenth of what a request costs."""

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def began(self, record: Record) -> None:
        if record.endpoint in CALLS:
            record.story = Story()
            self._running[id(record)] = record

    def ended(self, record: Record) -> None:
        if record.story is not None:
            del self._running[id(record)]
            self._ended.append((record.id, _pack(record) if record.made is None else record))

    def newest(self) -> Iterator[Record]:
        """Those that run, newest first; then those that have ended, the last one to end first."""
        yield from reversed(self._running.values())
        yield from (_unpacked(kept) for _, kept in reversed(self._ended))

    def find(self, request_id: str) -> Record | None:
        """Clients may give one id to many calls: the newest."""
        running = (record for record in reversed(self._running.values()) if record.id == request_id)
        ended = (_unpacked(kept) for each, kept in reversed(self._ended) if each == request_id)
        return next(itertools.chain(running, ended), None)


def _unpacked(kept: bytes | Record) -> Record:
    return _unpack(kept) if isinstance(kept, bytes) else kept
