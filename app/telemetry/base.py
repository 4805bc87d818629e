"""The narrow interface: the way through tells of requests and of events, and knows no backend."""

from dataclasses import dataclass
from typing import Protocol

from app.telemetry.record import Record


@dataclass(frozen=True)
class EngineErrorSeen:
    """An attempt failed; it may have been retried."""

    request_id: str
    replica: str
    error: str
    detail: str
    retried: bool


@dataclass(frozen=True)
class StreamTakenOver:
    """A stream whose replica died goes on at another one; its client has noticed nothing."""

    request_id: str
    from_replica: str
    to_replica: str


@dataclass(frozen=True)
class ReplicaChanged:
    replica: str
    state: str
    reason: str


@dataclass(frozen=True)
class CircuitChanged:
    """A replica gets no requests for a while (`open`), one to try (`half_open`), or all again (`closed`)."""

    replica: str
    state: str


@dataclass(frozen=True)
class WorkerChanged:
    """A worker, as this gateway sees it. Beside the worker's own states there are `lost`, for one that does not
    answer, and `forgotten`, for one that is not looked at any more."""

    worker: str
    state: str
    reason: str


@dataclass(frozen=True)
class SwapBegan:
    """Workers are told to serve another model."""

    id: str
    model: str
    workers: int


@dataclass(frozen=True)
class SwapEnded:
    """`outcome`: `done`, `failed` or `cancelled`. Unless it is done, those that changed serve again what they did."""

    id: str
    model: str
    outcome: str
    seconds: float
    reason: str


@dataclass(frozen=True)
class TenantsRead:
    """The file of tenants has changed. Refused, it changes nothing: what was read before is in force."""

    tenants: int
    keys: int
    refused: bool


@dataclass(frozen=True)
class StoreChanged:
    """The store that gateways share came or went."""

    available: bool
    reason: str


@dataclass(frozen=True)
class CollectorChanged:
    """The collector of traces takes them, or takes them no more: then they are dropped, and requests go on."""

    available: bool
    reason: str


Event = (
    EngineErrorSeen
    | StreamTakenOver
    | ReplicaChanged
    | CircuitChanged
    | WorkerChanged
    | SwapBegan
    | SwapEnded
    | TenantsRead
    | StoreChanged
    | CollectorChanged
)


class Telemetry(Protocol):
    def began(self, record: Record) -> None: ...

    def ended(self, record: Record) -> None: ...

    def note(self, event: Event) -> None: ...


class Backend(Telemetry):
    """Makes nothing of what it is told. Those that are made of this need only have what they make something of."""

    def began(self, record: Record) -> None:
        """Of a request, when it has come."""

    def ended(self, record: Record) -> None:
        """Of a request, when all is known of it."""

    def note(self, event: Event) -> None:
        """Of what happens beside."""


class Everyone(Telemetry):
    """Tells several backends what they make something of."""

    def __init__(self, *backends: Telemetry) -> None:
        self._began = [each.began for each in backends if type(each).began is not Backend.began]
        self._ended = [each.ended for each in backends if type(each).ended is not Backend.ended]
        self._noted = [each.note for each in backends if type(each).note is not Backend.note]

    def began(self, record: Record) -> None:
        for tell in self._began:
            tell(record)

    def ended(self, record: Record) -> None:
        for tell in self._ended:
            tell(record)

    def note(self, event: Event) -> None:
        for tell in self._noted:
            tell(event)
