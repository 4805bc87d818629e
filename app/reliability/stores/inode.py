"""Which file it is that stands at a place. One that was deleted or replaced still takes what is written by who has it
open, and nobody would find it there again."""

from pathlib import Path

Inode = tuple[int, int]


def inode_at(path: Path) -> Inode | None:
    """`None`: nothing that could be opened."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
