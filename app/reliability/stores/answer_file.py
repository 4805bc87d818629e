"""Kept answers in one SQLite file. Blocking: one thread of its own uses it (`embedded`)."""

import logging
import os
import sqlite3
from pathlib import Path

import msgspec

from app.clock import Clock
from app.reliability.stores.answers import Kept, Key

log = logging.getLogger("gllm")

ROW_BYTES = 256
"""What a row takes beside its answer, roughly."""
AT_ONCE = 256
"""Rows cleared away at a time, so that no request waits for all of yesterday's."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNKEPT = Kept("", 0, None)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS answers (
    scope TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, expires REAL NOT NULL, size INTEGER NOT NULL, answer BLOB
);
CREATE INDEX IF NOT EXISTS by_age ON answers (expires);
CREATE INDEX IF NOT EXISTS whole_by_age ON answers (expires) WHERE answer IS NOT NULL;
"""
_FIND = "SELECT fingerprint, answer FROM answers WHERE scope = ? AND expires > ?"
_PUT = "INSERT INTO answers VALUES (?, ?, ?, ?, ?)"
_DROP = "DELETE FROM answers WHERE scope = ? RETURNING size"
_DROP_EXPIRED = """DELETE FROM answers WHERE scope IN
    (SELECT scope FROM answers WHERE expires <= ? ORDER BY expires LIMIT ?) RETURNING size"""
_OLDEST_WHOLE = "SELECT scope, size FROM answers WHERE answer IS NOT NULL ORDER BY expires LIMIT 1"
_FORGET = f"UPDATE answers SET answer = NULL, size = {ROW_BYTES} WHERE scope = ?"
_DROP_OLDEST = """DELETE FROM answers WHERE scope IN
    (SELECT scope FROM answers ORDER BY expires LIMIT ?) RETURNING size"""


class AnswerFile:
    """Opened when it is first used, and again after each failure: what was broken may be mended by then.

    A file that SQLite cannot read any more is put aside. Its answers are lost; those to come are not.
    """

    def __init__(self, path: Path, max_bytes: int, kept_s: float, unix_now: Clock) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._kept_s = kept_s
        self._now = unix_now
        self._db: sqlite3.Connection | None = None
        self._bytes = 0

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
        self._bytes -= _sizes(db.execute(_DROP_EXPIRED, (now, AT_ONCE)))
        self._bytes -= _sizes(db.execute(_DROP, (key.scope,)))
        size = ROW_BYTES + len(data or b"")
        db.execute(_PUT, (key.scope, key.fingerprint, now + self._kept_s, size, data))
        self._bytes += size

    def _make_room(self, db: sqlite3.Connection) -> None:
        """The oldest answers go first, then the oldest keys: that one was used is worth more than its answer."""
        while self._bytes > self._max_bytes and (oldest := db.execute(_OLDEST_WHOLE).fetchone()):
            db.execute(_FORGET, oldest[:1])
            self._bytes -= oldest[1] - ROW_BYTES
        if self._bytes > self._max_bytes:
            self._bytes -= _sizes(db.execute(_DROP_OLDEST, (AT_ONCE,)))

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))  # answers are nobody else's business
            self._db = db = sqlite3.connect(self._path, timeout=0.5)
            db.executescript(_SCHEMA)
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
