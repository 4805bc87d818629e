"""SIGTERM ends a run as Ctrl+C does: fixtures end what they have started. What follows does not cut that short."""

import signal
from types import FrameType

import psutil
import pytest


def heed(config: pytest.Config) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(config, "workerinput"):  # it may be told in several ways: by its group, by who started it
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: None)
    raise KeyboardInterrupt


class Told:
    """Where several processes share the tests, all hear of it at once: later they have no time left."""

    def pytest_keyboard_interrupt(self) -> None:
        for worker in psutil.Process().children():
            worker.terminate()
