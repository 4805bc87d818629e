"""The ledger of one gateway in a file of its own. It blocks: one thread uses it, which is never the event loop's.

Every write is on the disk when it returns (WAL, synchronous=FULL): neither a kill nor a power cut takes more than what
was not written yet, as far as the disk keeps its word. Two gateways on one file wait for each other and both count.
"""

import os
import secrets
import sqlite3
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from app.reliability.ledger import LONGEST_DAYS, Amounts, Book, Selection
from app.reliability.stores.inode import Inode, inode_at

FILE = "usage.db"
VERSION = 1
BUSY_S = 2.0
"""How long a write waits for another process to end its own."""
AT_ONCE = 500
"""Rows that are shared in one go."""

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL,
    tenant TEXT NOT NULL,
    model TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    unshared INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (day, tenant, model)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS usage_unshared ON usage (unshared) WHERE unshared;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
COMMIT;
"""
_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET
    requests = requests + excluded.requests,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    unshared = 1
"""
_COLUMNS = "day, tenant, model, requests, prompt_tokens, completion_tokens, cached_tokens"


class SqliteLedger:
    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._open: sqlite3.Connection | None = None
        self._inode: Inode | None = None

    def add(self, book: Book) -> None:
        """All of it or nothing. What goes wrong is a `sqlite3.Error` or an `OSError`, and may go right next time."""
        rows = [(day.isoformat(), tenant, model, *_columns(amounts)) for (day, tenant, model), amounts in book.items()]
        self._write([(_ADD, row) for row in rows])

    def select(self, selection: Selection) -> Book:
        where, given = "day BETWEEN ? AND ?", [selection.first.isoformat(), selection.last.isoformat()]
        for column, wanted in (("tenant", selection.tenant), ("model", selection.model)):
            if wanted is not None:
                where += f" AND {column} = ?"
                given.append(wanted)
        return self._rows(f"SELECT {_COLUMNS} FROM usage WHERE {where}", given)

    # --- what other gateways do not know yet ----------------------------------------------------------------------

    def unshared(self) -> Book:
        return self._rows(f"SELECT {_COLUMNS} FROM usage WHERE unshared LIMIT {AT_ONCE}", [])

    def shared(self, book: Book) -> None:
        """These amounts are known now. Where more was added meanwhile, that is still to be told."""
        mark = "UPDATE usage SET unshared = 0 WHERE day = ? AND tenant = ? AND model = ? AND requests = ?"
        rows = [(day.isoformat(), tenant, model, amounts.requests) for (day, tenant, model), amounts in book.items()]
        self._write([(mark, row) for row in rows])

    def share_all_again(self, today: date) -> None:
        since = today - timedelta(days=LONGEST_DAYS)
        self._write([("UPDATE usage SET unshared = 1 WHERE day >= ?", (since.isoformat(),))])

    def fact(self, name: str) -> str:
        """Made up when it is first asked for; afterwards the same for ever."""
        while (value := self.known(name)) is None:
            self._write([("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, secrets.token_hex(8)))])
        return value

    def learn(self, name: str, value: str) -> None:
        self._write([("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))])

    def known(self, name: str) -> str | None:
        with closing(self._connection().execute("SELECT value FROM facts WHERE name = ?", (name,))) as found:
            row: tuple[str] | None = found.fetchone()
            return row[0] if row else None

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    # --- the file -------------------------------------------------------------------------------------------------

    def _write(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        connection = self._connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            for statement, given in statements:
                connection.execute(statement, given)
            connection.execute("COMMIT")
        except BaseException:
            self.close()  # which undoes what was begun; the file may have gone, so it is looked for again next time
            raise

    def _rows(self, query: str, given: list[str]) -> Book:
        with closing(self._connection().execute(query, given)) as found:
            return {(date.fromisoformat(day), tenant, model): Amounts(*rest) for day, tenant, model, *rest in found}

    def _connection(self) -> sqlite3.Connection:
        if self._open is not None and self._inode != inode_at(self.path):
            self.close()
        if self._open is None:
            self._open = self._opened()
            self._inode = inode_at(self.path)
        return self._open

    def _opened(self) -> sqlite3.Connection:
        if not self._read_only:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        place = f"{self.path.absolute().as_uri()}?mode={'ro' if self._read_only else 'rw'}"
        connection = sqlite3.connect(place, timeout=BUSY_S, isolation_level=None, check_same_thread=False, uri=True)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise sqlite3.DatabaseError(f"{self.path} was written by a newer gllm")
            if not self._read_only:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                if version < VERSION:
                    connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection


def _columns(amounts: Amounts) -> tuple[int, int, int, int]:
    return amounts.requests, amounts.prompt_tokens, amounts.completion_tokens, amounts.cached_tokens
