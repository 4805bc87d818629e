"""The file's text, to be changed by one process at a time, and replaced whole or not at all."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from app.tenants.file import parse, read_text

OWNER_ONLY = 0o600


class Draft:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.text = read_text(path) if path.exists() else ""

    def save(self, text: str) -> None:
        """Raises `BadTenants` for a text that no gateway would read, and `OSError`; then the file is as it was."""
        parse(text)
        descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        new = Path(name)
        try:
            with open(descriptor, "wb") as file:
                file.write(text.encode())
                self._pass_on_rights(file.fileno())
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise

    def _pass_on_rights(self, descriptor: int) -> None:
        """The gateway may run as somebody else, and must be able to read on. A new file is its owner's only."""
        if not self._path.exists():
            return
        old = self._path.stat()
        with suppress(PermissionError):
            os.fchown(descriptor, old.st_uid, old.st_gid)
        os.fchmod(descriptor, old.st_mode & 0o777)


@contextmanager
def drafting(path: Path) -> Iterator[Draft]:
    """The lock is a file of its own: the file itself becomes another one with each change."""
    path = path.resolve()  # a link stays a link
    with open(path.with_name(f"{path.name}.lock"), "a", opener=_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Draft(path)


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, OWNER_ONLY)
