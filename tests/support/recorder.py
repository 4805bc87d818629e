"""A telemetry backend that remembers, so that a test can compare what was told as a list."""

from app.telemetry.base import Event
from app.telemetry.record import Record


class Recorder:
    def __init__(self) -> None:
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.in_progress = 0

    def began(self, record: Record) -> None:
        self.in_progress += 1

    def ended(self, record: Record) -> None:
        self.in_progress -= 1
        self.records.append(record)

    def note(self, event: Event) -> None:
        self.events.append(event)

    @property
    def last(self) -> Record:
        return self.records[-1]
