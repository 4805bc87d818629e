"""What a process says: all of it in a file, the last lines in mind, and each line told."""

import re
from collections import deque
from collections.abc import Callable

from app.cluster.launchers.logfile import LogFile

TAIL_LINES = 50
LONGEST_LINE = 4_096
ANSI = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
ERROR = re.compile(
    r"(?:\(\w+ pid=\d+\) )?(?:ERROR \S+ \S+ \[[^]]*\] )?(?:\w+\.)*(?P<said>\w+(?:Error|Exception): \S.*)"
)
"""The last line of a traceback, behind what vLLM's processes write before each of theirs."""
ERROR_CHARS = 300
SHOWN_LINES = 10
"""Of the last ones, to people. An error that is among them needs no other mention."""

Told = Callable[[str], None]


class Output:
    def __init__(self, log: LogFile, told: Told) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.first_error = ""
        """Where processes of an engine fall one after the other, this is what the first one fell of; the last lines are
        often the tracebacks of the others."""
        self._log = log
        self._told = told
        self._rest = b""

    @property
    def buried_error(self) -> str:
        """The first one, unless it is plain to see."""
        seen = any(self.first_error in line for line in list(self.tail)[-SHOWN_LINES:])
        return "" if seen else self.first_error

    def take(self, data: bytes) -> None:
        self._log.write(data)
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LONGEST_LINE:]
        for line in lines:
            self._say(line)

    def end(self) -> None:
        """Its last line may lack an end."""
        self._say(self._rest)
        self._rest = b""

    def _say(self, line: bytes) -> None:
        """A line that was drawn over itself (a progress bar) counts as it looked in the end."""
        shown = ANSI.sub(b"", line.rstrip(b"\r").rpartition(b"\r")[2])[:LONGEST_LINE].decode(errors="replace").rstrip()
        if shown:
            if not self.first_error and (error := ERROR.fullmatch(shown)):
                self.first_error = error["said"][:ERROR_CHARS]
            self.tail.append(shown)
            self._told(shown)
