"""Kept answers in one SQLite file. Blocking: one thread of its own uses it (`embedded`)."""

import logging
import os
import sqlite3
from itertools import takewhile
from pathlib import Path

import msgspec

from app.clock import Clock
from app.reliability.stores.answers import Kept, Key
from app.reliability.stores.inode import Inode, inode_at

log = logging.getLogger("gllm")

ROW_BYTES = 256
"""What a row takes beside its answer, roughly."""
AT_ONCE = 16
"""Old rows cleared away with each new one, so that no request waits for all of yesterday's."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNKEPT = Kept("", 0, None)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode

# Numbered as they come, so the lowest are the oldest and age needs no index: each costs a page of writing an answer.
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    scope TEXT NOT NULL UNIQUE,
    fingerprint BLOB NOT NULL,
    expires REAL NOT NULL,
    size INTEGER NOT NULL,
    answer BLOB
);
"""
_FIND = "SELECT fingerprint, answer FROM answers WHERE scope = ? AND expires > ?"
_PUT = "INSERT INTO answers (scope, fingerprint, expires, size, answer) VALUES (?, ?, ?, ?, ?)"
_DROP = "DELETE FROM answers WHERE scope = ? RETURNING size"
_OLDEST = "SELECT number, expires FROM answers ORDER BY number LIMIT ?"
_DROP_UNTIL = "DELETE FROM answers WHERE number <= ? RETURNING size"
_OLDEST_WHOLE = "SELECT number, size FROM answers WHERE number > ? AND answer IS NOT NULL ORDER BY number LIMIT 1"
_FORGET = f"UPDATE answers SET answer = NULL, size = {ROW_BYTES} WHERE number = ?"


class AnswerFile:
    """Opened when it is first used, and again after each failure and when it is another: what was broken may be whole.

    A file that SQLite cannot read any more is put aside. Its answers are lost; those to come are not.
    """

    def __init__(self, path: Path, max_bytes: int, kept_s: float, unix_now: Clock) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept_s = kept_s
        self._now = unix_now
        self._db: sqlite3.Connection | None = None
        self._inode: Inode | None = None
        self._bytes = 0
        self._forgotten = 0
        """Up to this number no row has its answer any more."""

    def find(self, scope: str) -> tuple[bytes, Kept] | None:
        """The fingerprint it was used with, and the answer."""
        try:
            row = self._open().execute(_FIND, (scope, self._now())).fetchone()
        except sqlite3.Error as error:
            self._failed(error)
            raise
        return None if row is None else (row[0], _UNKEPT if row[1] is None else _decode(row[1]))

    def put(self, key: Key, answer: Kept) -> None:
        data = None if answer.frames is None else _encode(answer)
        try:
            with self._open() as db:
                self._add(db, key, data)
                self._make_room(db)
        except sqlite3.Error as error:
            self._failed(error)
            raise

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _add(self, db: sqlite3.Connection, key: Key, data: bytes | None) -> None:
        now = self._now()
        old = list(takewhile(lambda row: row[1] <= now, db.execute(_OLDEST, (AT_ONCE,))))
        if old:
            self._drop(db, old[-1][0])
        self._bytes -= _sizes(db.execute(_DROP, (key.scope,)))
        size = ROW_BYTES + len(data or b"")
        db.execute(_PUT, (key.scope, key.fingerprint, now + self._kept_s, size, data))
        self._bytes += size

    def _make_room(self, db: sqlite3.Connection) -> None:
        """The oldest answers go first, then the oldest keys: that one was used is worth more than its answer."""
        while self._bytes > self._max_bytes:
            whole = db.execute(_OLDEST_WHOLE, (self._forgotten,)).fetchone()
            if whole is None:
                self._drop(db, db.execute(_OLDEST, (AT_ONCE,)).fetchall()[-1][0])
                return
            self._forgotten, size = whole
            db.execute(_FORGET, (self._forgotten,))
            self._bytes -= size - ROW_BYTES

    def _drop(self, db: sqlite3.Connection, number: int) -> None:
        """This one, and all before it."""
        self._bytes -= _sizes(db.execute(_DROP_UNTIL, (number,)))

    def _open(self) -> sqlite3.Connection:
        if self._db is not None and self._inode != inode_at(self._path):
            self.close()
        if self._db is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # answers are nobody else's business
            self._db = db = sqlite3.connect(self._path, timeout=0.5)
            db.executescript(_SCHEMA)
            self._inode = inode_at(self._path)
            self._forgotten = 0
            self._bytes = db.execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()[0]
        return self._db

    def _failed(self, error: sqlite3.Error) -> None:
        try:
            self.close()
        finally:
            self._db = None
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            aside = self._path.with_name(f"{self._path.name}.damaged")
            log.error("%s cannot be read any more (%s): kept answers are lost; see %s", self._path, error, aside)
            self._path.replace(aside)
            for beside in ("-wal", "-shm"):
                self._path.with_name(self._path.name + beside).unlink(missing_ok=True)


def _sizes(rows: sqlite3.Cursor) -> int:
    return sum(size for (size,) in rows)
