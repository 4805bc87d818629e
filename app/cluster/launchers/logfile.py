"""What an engine says, kept on disk: one file and the one before it, neither beyond a size."""

from pathlib import Path
from typing import BinaryIO


class LogFile:
    """Never fails: an engine must run on a full or read-only disk too. What cannot be written is lost."""

    def __init__(self, path: Path, max_bytes: int = 10 * 2**20) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._size = 0
        self._open()

    def write(self, data: bytes) -> None:
        if self._file is None:
            return
        try:
            if self._size + len(data) > self._max_bytes and self._size:
                self._file.close()
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
                self._open()
            self._file.write(data)
            self._size += len(data)
        except OSError:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self._file, self._size = None, 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            self._size = self._file.tell()
        except OSError:
            self.close()
