"""Ports for engines: free now, and claimed against every other gateway on this machine."""

import socket
from collections.abc import Iterator
from contextlib import suppress

LAST_PORT = 65_535


class NoPort(Exception):
    pass


class Ports:
    """An engine binds its port seconds after it was chosen. Meanwhile a name in Linux' abstract socket space, which
    vanishes with its holder, keeps a second gateway from choosing the same one.
    """

    def __init__(self, host: str, first: int) -> None:
        self._host = host
        self._candidates = iter(range(first, LAST_PORT + 1))
        self._claims: list[socket.socket] = []
        self.skipped: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        for port in self._candidates:
            if self._claimed(port):
                return port
            self.skipped.append(port)
        raise NoPort(f"no free port up to {LAST_PORT} is left for an engine")

    def close(self) -> None:
        while self._claims:
            self._claims.pop().close()

    def still_free(self, port: int) -> bool:
        """Nobody who makes no claims has taken it."""
        try:
            with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self._host, port))
        except OSError:
            return False
        return True

    def _claimed(self, port: int) -> bool:
        claim = socket.socket(socket.AF_UNIX)
        try:
            with suppress(ValueError, FileNotFoundError):  # there is no such space beyond Linux
                claim.bind(f"\0gllm-engine-{port}")
        except OSError:
            claim.close()
            return False
        if not self.still_free(port):
            claim.close()
            return False
        self._claims.append(claim)
        return True
