"""A terminal to run a command in: small, but it obeys what our screen asks of one."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_PIECE = re.compile(r"\x1b\[(\d*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Picture:
    """What stands on the terminal, from the first line that ever stood there."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = self._column = 0
        self.widest = 0

    def feed(self, text: str) -> None:
        for piece in _PIECE.finditer(text):
            count, order, returned, fed, shown = piece.groups()
            if order == "A":
                self._row -= int(count or 1)
                assert self._row >= 0, "above the first line"
            elif order == "J":
                self.lines[self._row :] = [self.lines[self._row][: self._column]]
            elif order:
                raise AssertionError(f"unknown to this terminal: {piece[0]!r}")
            elif returned:
                self._column = 0
            elif fed:
                self._row += 1
                if self._row == len(self.lines):
                    self.lines.append("")
            else:
                self._put(shown)

    def _put(self, text: str) -> None:
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)
        self.widest = max(self.widest, self._column)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Terminal:
    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, *, columns: int = 100, rows: int = 30
    ) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._fd = ours
        self.picture = Picture()
        sizeless = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            argv, env=sizeless, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._fd)

    def until(self, true: Callable[[str], bool], within_s: float = 60) -> str:
        """The picture as soon as it is so."""
        give_up = time.monotonic() + within_s
        while not true(str(self.picture)):
            assert time.monotonic() < give_up, str(self.picture)
            assert self._read() or true(str(self.picture)), f"it ended\n{self.picture}"
        return str(self.picture)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self, within_s: float = 20) -> int:
        """Its exit code, with all that it said read."""
        give_up = time.monotonic() + within_s
        while self._read():
            assert time.monotonic() < give_up, str(self.picture)
        return self.process.wait(timeout=within_s)

    def _read(self) -> bool:
        """A little of what it says; `False` once it has ended."""
        if select.select([self._fd], [], [], 0.1)[0]:
            try:
                data = os.read(self._fd, 65_536)
            except OSError:  # nobody holds its other end any more
                return False
            self.picture.feed(data.decode())
            return bool(data)
        return True
