"""Finding what a program has left behind, however it was reparented: by a word in its environment."""

import os
import uuid
from contextlib import suppress
from pathlib import Path

NAME = "LEFT_BEHIND_BY"


class Mark:
    def __init__(self) -> None:
        self.env = {NAME: uuid.uuid4().hex}

    def processes(self) -> list[str]:
        """The command lines of those that carry it, and live."""
        wanted = f"{NAME}={self.env[NAME]}".encode()
        found = []
        for entry in os.listdir("/proc"):
            with suppress(OSError):  # it ended meanwhile, or belongs to somebody else
                home = Path("/proc") / entry
                if entry.isdigit() and wanted in (home / "environ").read_bytes().split(b"\0"):
                    found.append((home / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found
