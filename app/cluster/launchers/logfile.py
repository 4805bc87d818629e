"""What an engine says, kept on disk: one file and the one before it, neither beyond a size."""

from pathlib import Path
from typing import BinaryIO


class LogFile:
    """Never fails: an engine must run on a full or read-only disk too. What cannot be written is lost, and nothing that
    comes once it can be again."""

    def __init__(self, path: Path, max_bytes: int = 10 * 2**20) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._size = 0
        self._closed = False
        self.write(b"")

    def write(self, data: bytes) -> None:
        if self._closed:
            return
        try:
            if self._size + len(data) > self._max_bytes and self._size:
                self._let_go()
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            self._opened().write(data)
            self._size += len(data)
        except OSError:
            self._let_go()

    def close(self) -> None:
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._size = self._file.tell()
        return self._file
