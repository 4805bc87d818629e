"""Connections of clients: how many there are, and how many there may be."""

import logging
import resource
import sys
from contextlib import suppress

log = logging.getLogger("gllm")

OF_A_REQUEST = 2
"""Open files: its client's connection, and its engine's."""
OTHERS = 256
"""Listeners, stores, logs, looks at engines, and clients that are being told that there is no room for them."""
TOLD = 64
"""So many at once are told. Whoever comes then too is cut off: an answer takes a moment, which floods do not leave."""
ROOM_AGAIN = 0.9
"""Of all: until there are no more than that it is the same shortage, of which the log has one line."""


class Connections:
    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0
        """Those that are being turned away are among them."""
        self.refused = 0
        self._short = False

    def come(self) -> None:
        self.open += 1

    def gone(self) -> None:
        self.open -= 1
        if self._short and self.open <= self.most * ROOM_AGAIN:
            self._short = False
            log.warning("there is room for connections again: %d of %d are open", self.open, self.most)

    @property
    def too_many(self) -> bool:
        return self.open > self.most

    def refuse(self) -> bool:
        """The last that came is one too many. Whether it is to be told so."""
        self.refused += 1
        if not self._short:
            self._short = True
            log.warning("%d connections are open, and no more are taken (MAX_CONNECTIONS, ulimit -n)", self.most)
        return self.open <= self.most + TOLD


def allow_open_files() -> None:
    """As many as the system lets us have. A shell's 1,024 would be the end at a few hundred clients."""
    with suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def that_files_allow() -> int:
    """Else clients could take the files that engines are asked through, and all of these would seem to be gone."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (files - min(OTHERS, files // 4)) // OF_A_REQUEST)
