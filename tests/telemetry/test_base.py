"""Who is told of requests and of events."""

import pytest

from app.telemetry.base import Backend, Everyone, StoreChanged
from app.telemetry.record import Record
from tests.telemetry.test_logs import record


class Ends(Backend):
    def __init__(self) -> None:
        self.heard: list[Record] = []

    def ended(self, record: Record) -> None:
        self.heard.append(record)


def test_a_backend_is_told_what_it_makes_something_of_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*_: object) -> None:
        pytest.fail("it makes nothing of this")

    for name in ("began", "note"):
        monkeypatch.setattr(Backend, name, told)
    one, other = Ends(), Ends()
    everyone, request = Everyone(one, Everyone(other)), record()
    everyone.began(request)
    everyone.note(StoreChanged(available=False, reason="gone"))
    everyone.ended(request)
    assert one.heard == other.heard == [request]
