"""What an invariant is, and what several of them look at."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.reliability.stores.redis_quota import LEASE_S, ON_ITS_WAY_S, RENEWED_S
from app.telemetry.base import StoreChanged
from app.telemetry.record import Record
from tests.simulation.history import History, Seen

TICK_S = 0.05
"""Between two sweeps of the watch: time limits are late by so much at most."""

AT_ONCE_S = 1e-6
"""In virtual time nothing takes time but waiting."""

BLINK_S = 0.5
"""A gateway that reaches Redis for less than that may find no time to renew anything."""

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


def asking_s(history: History) -> float:
    """For so long Redis may keep somebody waiting: a script that it does not know is sent a second time."""
    return 2 * float(history.world.settings["REDIS_TIMEOUT"]) if history.world.shared else 0.0


def limits_s(history: History, tenant: str) -> float:
    """For so long Redis may keep a call of this tenant waiting for its limits: where all places are taken it is asked
    a second time, a little later."""
    may_lack_places = any(each.name == tenant and each.concurrent is not None for each in history.world.tenants)
    return asking_s(history) + (ON_ITS_WAY_S + asking_s(history) if may_lack_places and history.world.shared else 0.0)


def away(history: History, gateway: int) -> list[tuple[float, float]]:
    """From when until when that gateway knew that it cannot reach Redis."""
    periods: list[tuple[float, float]] = []
    for at, whose, event in history.events:
        if isinstance(event, StoreChanged) and whose == gateway:
            if not event.available:
                periods.append((at, history.ended))
            elif periods:
                periods[-1] = (periods[-1][0], at)
    return periods


def longest_away_s(history: History) -> float:
    """Of any gateway, as its leases see it."""
    longest = 0.0
    for gateway in range(history.world.gateways):
        since, last = 0.0, 0.0
        for begin, end in away(history, gateway):
            since = since if begin - last < BLINK_S else begin
            last = end
            longest = max(longest, last - since)
    return longest


def times_emptied(history: History) -> int:
    return sum(fault.empties for fault in history.world.store_faults)


def keys_may_lapse(history: History) -> bool:
    """A gateway was away for so long that its leases on keys may have ended: they are renewed after a third."""
    shared = history.world.shared
    return shared and longest_away_s(history) > history.world.settings["IDEMPOTENCY_LEASE"] * 2 / 3 - BLINK_S


def places_may_lapse(history: History) -> bool:
    return longest_away_s(history) > LEASE_S - RENEWED_S - BLINK_S


def hedges(history: History) -> bool:
    return bool(history.world.settings["HEDGE_SHARE"])
