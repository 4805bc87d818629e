"""Time as an argument: whoever waits or measures is handed a clock. Only what builds the parts asks the machine."""

from collections.abc import Callable
from datetime import UTC, date, datetime

Clock = Callable[[], float]
"""Seconds on a monotonic scale."""


def unix_now() -> float:
    return datetime.now(UTC).timestamp()


def utc_today() -> date:
    return datetime.now(UTC).date()
