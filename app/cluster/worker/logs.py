"""What an engine said, from its log: the last lines, and those to come."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 64 * 1024
LOOK_EVERY_S = 0.25


async def said(path: Path, lines: int, *, follow: bool, ended: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The last lines, of the log before this one too where it takes that; then, if wanted, all that comes."""
    with ExitStack() as stack:
        file = _opened(path, stack)
        newest = _last(file, lines)
        if missing := lines - newest.count(b"\n"):
            newest = _last(_opened(path.with_name(f"{path.name}.1"), stack), missing) + newest
        if newest:
            yield newest
        while follow:
            over = ended()
            while file and (piece := file.read(CHUNK_BYTES)):
                yield piece
            if _is_another(path, file):
                file = _opened(path, stack)
            elif over:
                return
            else:
                await asyncio.sleep(LOOK_EVERY_S)


def _opened(path: Path, stack: ExitStack) -> BinaryIO | None:
    try:
        return stack.enter_context(path.open("rb", buffering=0))
    except OSError:
        return None


def _last(file: BinaryIO | None, lines: int) -> bytes:
    """Read from the end, as far as it takes; the file stands at its end again afterwards."""
    if file is None:
        return b""
    data, start = b"", file.seek(0, os.SEEK_END)
    end = start
    while start > 0 and data.count(b"\n") <= lines:
        length = min(CHUNK_BYTES, start)
        start = file.seek(start - length)
        data = file.read(length) + data
    file.seek(end)
    return b"".join(data.splitlines(keepends=True)[-lines:]) if lines > 0 else b""


def _is_another(path: Path, file: BinaryIO | None) -> bool:
    """A log that has become full makes room for the next."""
    try:
        return file is None or path.stat().st_ino != os.fstat(file.fileno()).st_ino
    except OSError:
        return False
