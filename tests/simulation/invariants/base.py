"""What an invariant is, and what several of them look at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.telemetry.record import Record
from tests.simulation.history import History, Seen

TICK_S = 0.05
"""Between two sweeps of the watch: time limits are late by so much at most."""

AT_ONCE_S = 1e-6
"""In virtual time nothing takes time but waiting."""

Invariant = Callable[[History], Iterator[str]]
INVARIANTS: list[Invariant] = []


@dataclass(frozen=True)
class Violation:
    invariant: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}"


def invariant(function: Invariant) -> Invariant:
    """It tells every case in which it does not hold."""
    INVARIANTS.append(function)
    return function


def with_records(history: History) -> Iterator[tuple[Seen, Record]]:
    records = {record.id: record for record in history.records}
    for seen in history.all_seen:
        if seen.visit.id in records:
            yield seen, records[seen.visit.id]


def streams(history: History) -> Iterator[Seen]:
    return (seen for seen in history.all_seen if seen.is_stream)


def code_of(seen: Seen) -> str | None:
    """Of the error that it was told."""
    error = seen.error
    return error["code"] if error is not None else None


def hedges(history: History) -> bool:
    return bool(history.world.settings["HEDGE_SHARE"])
