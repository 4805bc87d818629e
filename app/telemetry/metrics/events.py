"""What is counted of events: what happens to replicas, workers and files."""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from app.telemetry.base import (
    CircuitChanged,
    EngineErrorSeen,
    Event,
    ReplicaChanged,
    StreamTakenOver,
    SwapBegan,
    SwapEnded,
    TenantsRead,
)
from app.telemetry.metrics import families as f
from app.telemetry.metrics.tallies import Count, Reading, Spread

SWAPS_END = ("done", "failed", "cancelled")


class Events:
    def __init__(self) -> None:
        self._tenants_refused = False
        self._swaps_running = 0
        self._engine_errors = Count(f.ENGINE_ERRORS)
        self._retries = Count(f.RETRIES, [()])
        self._taken_over = Count(f.TAKEN_OVER, [()])
        self._openings = Count(f.CIRCUIT_OPENINGS)
        self._swaps = Count(f.SWAP_COUNT, [(outcome,) for outcome in SWAPS_END])
        self._swaps_took = Spread(f.SWAP_TOOK, [()])

    def note(self, event: Event) -> None:
        """What is not here shows by itself when the page is made."""
        match event:
            case EngineErrorSeen(error=error, retried=retried):
                self._engine_errors.add((error,))
                self._retries.add(number=retried)
            case StreamTakenOver():
                self._taken_over.add()
            case ReplicaChanged(replica=replica, state="removed"):
                self._openings.forget((replica,))
            case ReplicaChanged(replica=replica):
                self._openings.of((replica,))
            case CircuitChanged(replica=replica, state="open"):
                self._openings.add((replica,))
            case TenantsRead(refused=refused):
                self._tenants_refused = refused
            case SwapBegan():
                self._swaps_running += 1
            case SwapEnded(outcome=outcome, seconds=seconds):
                self._swaps_running -= 1
                self._swaps.add((outcome,))
                self._swaps_took.of().add(seconds)

    def readings(self) -> Iterator[Reading]:
        yield Reading(f.TENANTS_REFUSED, self._tenants_refused)
        yield Reading(f.SWAP_RUNNING, self._swaps_running)

    def metrics(self) -> Iterator[Metric]:
        for tally in (
            *(self._engine_errors, self._retries, self._taken_over),
            *(self._openings, self._swaps, self._swaps_took),
        ):
            yield tally.metric()
