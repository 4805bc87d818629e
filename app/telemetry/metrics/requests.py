"""What is counted of every request, whatever it asks for."""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from app.errors import ClientStalled, Outcome
from app.telemetry.metrics import families as f
from app.telemetry.metrics.labels import LIMITS, METHODS, OTHER
from app.telemetry.metrics.tallies import Bins, Count, Kept, Number, Reading, Spread
from app.telemetry.record import Record

Kind = tuple[str, str, int]
"""Method, endpoint and status."""


class Requests:
    def __init__(self) -> None:
        self._inside: dict[int, Record] = {}
        """Those that are on their way, by identity."""
        self._answers = Count(f.REQUESTS)
        self._took = Spread(f.DURATION)
        self._kinds = Kept(self._of_kind)
        self._streams = Count(f.STREAMS, [(outcome.value,) for outcome in Outcome])
        self._slow_readers = Count(f.SLOW_READERS, [()])
        self._limits_met = Count(f.LIMITS_MET, [(limit,) for limit in LIMITS.values()])

    def began(self, record: Record) -> None:
        self._inside[id(record)] = record

    def ended(self, record: Record) -> None:
        self._inside.pop(id(record), None)
        method = record.method if record.method in METHODS else OTHER
        answers, took = self._kinds[method, record.endpoint, record.status]
        answers.value += 1
        took.add(record.ended - record.began)
        if record.stream and record.first_byte:
            self._streams.add((record.outcome,))
        if record.error:
            self._failed(record)

    def _of_kind(self, kind: Kind) -> tuple[Number, Bins]:
        method, endpoint, status = kind
        return self._answers.of((method, endpoint, str(status))), self._took.of((method, endpoint))

    def _failed(self, record: Record) -> None:
        if record.error == ClientStalled.__name__:
            self._slow_readers.add()
        if (limit := LIMITS.get(record.code)) is not None and record.status == 429:
            self._limits_met.add((limit,))

    def readings(self) -> Iterator[Reading]:
        inside = list(self._inside.values())
        yield Reading(f.IN_PROGRESS, len(inside))
        yield Reading(f.STREAMS_OPEN, sum(1 for each in inside if each.stream and each.first_byte))

    def metrics(self) -> Iterator[Metric]:
        for tally in (self._answers, self._took, self._streams, self._slow_readers, self._limits_met):
            yield tally.metric()
