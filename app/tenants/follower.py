"""Keeps a directory at what the file says, while the file changes."""

import asyncio
import logging
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

from app.tenants.directory import Directory
from app.tenants.file import BadTenants, load
from app.tenants.roster import Roster

log = logging.getLogger("gllm")

LOOK_EVERY_S = 0.5
"""A change is read at the second look that finds it the same, so that half of a file is not taken for the whole."""

Signature = tuple[int, ...] | None
Told = Callable[[Roster, BadTenants | None], None]
"""What is in force, and why it is not what the file says, if it is not."""


class Follower:
    def __init__(self, path: Path, today: Callable[[], date], told: Told) -> None:
        """Raises `BadTenants`: who starts with a bad file has nothing to fall back on."""
        self._path = path
        self._told = told
        self._seen = self._read = self._signature()
        self._bad = False
        self.directory = Directory(load(path), today)

    async def run(self) -> None:
        """The disk may be slow, or on a network: it is looked at from a thread."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._take(await asyncio.to_thread(self._news))

    def look(self) -> None:
        self._take(self._news())

    def _news(self) -> Roster | BadTenants | None:
        now = self._signature()
        if now == self._read:
            self._seen = now
            return None
        if now != self._seen:
            self._seen = now
            return None
        self._read = now
        try:
            return load(self._path)
        except BadTenants as error:
            return error
        except Exception:  # a file that nobody foresaw must not end the gateway
            log.exception("reading %s failed unforeseen", self._path)
            return BadTenants("it cannot be understood.", path=self._path)

    def _take(self, news: Roster | BadTenants | None) -> None:
        match news:
            case None:
                return
            case BadTenants():
                log.error("%s Until that is mended, the tenants and keys read before stay in force.", news)
                self._told(self.directory.roster, news)
            case Roster():
                if self._bad:
                    log.warning("%s is read again.", self._path)
                self.directory.replace(news)
                self._told(news, None)
        self._bad = isinstance(news, BadTenants)

    def _signature(self) -> Signature:
        """Differs when the file was written, replaced, restored with an old date, or made readable."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
