"""What waits to be sent is bounded, what is lost is counted, and nobody waits for a collector."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from app.telemetry.record import Record
from app.telemetry.tracing.outbox import Outbox
from app.telemetry.tracing.sdk import Batches

WAIT_S = 5.0


class Exporter(SpanExporter):
    """Takes what it is given, as long as it is open."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.takes = True
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Semaphore(0)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.release()
        self.open.wait(WAIT_S)
        if not self.takes:
            return SpanExportResult.FAILURE
        self.batches.append([span.name for span in spans])
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.takes = False
        self.open.set()

    @property
    def sent(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


class Office:
    def __init__(self, batches: Batches, spans_of: Callable[[Record], list[ReadableSpan]]) -> None:
        self.exporter = Exporter()
        self.lost: list[int] = []
        self.changes: list[tuple[bool, str]] = []
        self.changed = threading.Semaphore(0)
        self.outbox = Outbox(self.exporter, batches, spans_of, lambda record: 2, self.lost.append, self._changed)

    def _changed(self, available: bool, reason: str) -> None:
        self.changes.append((available, reason))
        self.changed.release()


def told(name: str) -> Record:
    """Two spans: the request, and one attempt."""
    return Record(name, "/v1/chat/completions", "POST", 0.0, waits=((0.0, 1.0),))


def two_spans(record: Record) -> list[ReadableSpan]:
    return [ReadableSpan(f"{record.id}1"), ReadableSpan(f"{record.id}2")]


Make = Callable[..., Office]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Office] = []

    def office(
        max_waiting: int = 4,
        max_size: int = 2,
        every_s: float = 60.0,
        spans_of: Callable[[Record], list[ReadableSpan]] = two_spans,
    ) -> Office:
        made.append(Office(Batches(max_waiting, max_size, every_s), spans_of))
        return made[-1]

    yield office
    for each in made:
        each.exporter.open.set()
        each.outbox.close(WAIT_S)


def test_what_waits_is_sent_at_the_end(make: Make) -> None:
    office = make(max_waiting=10, max_size=5)
    office.outbox.put(told("a"))
    office.outbox.put(ReadableSpan("b"))
    office.outbox.close(WAIT_S)
    assert (office.exporter.sent, office.lost) == (["a1", "a2", "b"], [])


def test_a_full_batch_is_sent_at_once_and_others_when_it_is_time(make: Make) -> None:
    at_once, in_time = make(every_s=60.0), make(every_s=0.01)
    for name in "ab":
        at_once.outbox.put(told(name))
    in_time.outbox.put(told("c"))
    assert at_once.exporter.asked.acquire(timeout=WAIT_S)
    assert in_time.exporter.asked.acquire(timeout=WAIT_S)


def test_a_collector_that_hangs_costs_what_does_not_fit_and_no_time(make: Make) -> None:
    office = make(max_waiting=4, max_size=2)
    office.exporter.open.clear()
    for name in "ab":
        office.outbox.put(told(name))
    assert office.exporter.asked.acquire(timeout=WAIT_S)
    waiting = 3  # `a` is on its way, `b` waits
    for _ in range(waiting + 20):
        office.outbox.put(told("c"))
    assert sum(office.lost) == 2 * 20
    office.outbox.put(ReadableSpan("one"))
    assert sum(office.lost) == 2 * 20 + 1


def test_a_stop_waits_for_a_hanging_collector_no_longer_than_it_is_told(make: Make) -> None:
    office = make()
    office.exporter.open.clear()
    for name in "abc":
        office.outbox.put(told(name))
    assert office.exporter.asked.acquire(timeout=WAIT_S)
    began = time.monotonic()
    office.outbox.close(limit_s=0.05)
    assert time.monotonic() - began < WAIT_S / 2
    office.outbox.close(WAIT_S)
    assert (office.exporter.sent, sum(office.lost)) == ([], 6)


def test_after_the_end_nothing_is_taken(make: Make) -> None:
    office = make()
    office.outbox.close(WAIT_S)
    office.outbox.put(told("a"))
    assert (office.exporter.sent, office.lost) == ([], [2])


def test_it_is_told_once_that_the_collector_takes_nothing_and_once_that_it_does_again(make: Make) -> None:
    office = make(every_s=0.001)
    office.exporter.takes = False
    for _ in range(3):
        office.outbox.put(told("a"))
        assert office.exporter.asked.acquire(timeout=WAIT_S)
    assert office.changed.acquire(timeout=WAIT_S)
    office.exporter.takes = True
    office.outbox.put(told("b"))
    assert office.changed.acquire(timeout=WAIT_S)
    assert [available for available, _ in office.changes] == [False, True]
    assert sum(office.lost) == 6


def test_a_request_that_nobody_foresaw_does_not_end_the_telling(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def fails_once(record: Record) -> list[ReadableSpan]:
        if record.id == "bad":
            raise ValueError(record.id)
        return two_spans(record)

    office = make(spans_of=fails_once)
    office.outbox.put(told("bad"))
    office.outbox.put(told("a"))
    office.outbox.close(WAIT_S)
    assert (office.exporter.sent, office.lost) == (["a1", "a2"], [2])
    assert "the spans of a request could not be made" in caplog.text
