"""Showing that something is going on: one updating line on a terminal, plain lines elsewhere."""

import shutil
import threading
import time
from typing import TextIO

CLEAR = "\r\x1b[2K"


class Screen:
    """Stands in for a terminal's stderr: what is written goes above the status line, which stays the last one."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.Lock()
        self._status = ""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._terminal.fileno()

    def flush(self) -> None:
        self._terminal.flush()

    def write(self, text: str) -> int:
        with self._lock:
            self._terminal.write(CLEAR + text if self._status else text)
            if self._status and text.endswith("\n"):
                self._terminal.write(self._status)
            self._terminal.flush()
        return len(text)

    def status(self, text: str) -> None:
        """Empty: there is nothing to wait for any more."""
        with self._lock:
            width = shutil.get_terminal_size().columns - 1
            shown = text if len(text) <= width else f"{text[: width - 1]}…"
            self._terminal.write(CLEAR + shown if shown or self._status else "")
            self._terminal.flush()
            self._status = shown


class Progress:
    """What engines say while they load."""

    def __init__(self, screen: Screen | None, first: str) -> None:
        self._screen = screen
        self._since = time.monotonic()
        self._last = first
        self._done = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._since

    def line(self, name: str, text: str) -> None:
        if self._done:
            return
        if self._screen is None:
            print(f"{name}: {text}", flush=True)
        else:
            self._last = f"{name}: {text}"
            self.tick()

    def tick(self) -> None:
        if self._screen is not None and not self._done:
            self._screen.status(f"{self.seconds:4.0f} s  {self._last}")

    def done(self) -> None:
        self._done = True
        if self._screen is not None:
            self._screen.status("")
