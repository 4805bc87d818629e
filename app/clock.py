"""Time as an argument: whoever waits or measures is handed a clock."""

from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds on a monotonic scale."""
