"""Showing that something is going on: a few updating lines on a terminal, plain lines elsewhere."""

import shutil
import sys
import threading
import time
from contextlib import suppress
from typing import TextIO

from app.telemetry import ear

CLEAR = "\r\x1b[J"


def say(text: str, *, complaint: bool = False) -> None:
    """To whoever started us. That nobody can hear it, as a disk is full, a reader has gone or stopped, or a terminal is
    closed, is no reason to stop what runs."""
    stream = sys.stderr if complaint else sys.stdout
    with suppress(OSError):
        if ear.is_open(stream):
            print(text, file=stream, flush=True)


class Screen:
    """Stands in for a terminal's stderr: what is written goes above the status lines, which stay the last ones."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.Lock()
        self._status: tuple[str, ...] = ()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._terminal.fileno()

    def flush(self) -> None:
        with suppress(OSError):
            self._terminal.flush()

    def write(self, text: str) -> int:
        with self._lock:
            whole = text.endswith("\n")
            self._draw(self._away() + text + ("\n".join(self._status) if whole else ""))
            if not whole:  # the rest of the line is yet to come
                self._status = ()
        return len(text)

    def status(self, *lines: str) -> None:
        """None: there is nothing to wait for any more."""
        with self._lock:
            size = shutil.get_terminal_size()
            shown = tuple(_cut(line, size.columns - 1) for line in lines[: max(1, size.lines - 1)] if line)
            self._draw(self._away() + "\n".join(shown))
            self._status = shown

    def _draw(self, text: str) -> None:
        with suppress(OSError):  # as `say`
            self._terminal.write(text)
            self._terminal.flush()

    def _away(self) -> str:
        """To the beginning of the status, and clear from there."""
        if not self._status:
            return ""
        above = len(self._status) - 1
        return (f"\x1b[{above}A" if above else "") + CLEAR


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"


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
            say(f"{name}: {text}")
        else:
            self._last = f"{name}: {text}"
            self.tick()

    def tick(self) -> None:
        if self._screen is not None and not self._done:
            self._screen.status(f"{self.seconds:4.0f} s  {self._last}")

    def done(self) -> None:
        self._done = True
        if self._screen is not None:
            self._screen.status()
