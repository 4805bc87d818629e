"""The ledger on its way: from memory to the gateway's own file, and from there to the store that gateways share.

Each step takes only what the one before has written down. What a step cannot do now stays where it is and is done
later, so an answer never waits for the ledger, and a broken disk or store loses nothing while the process lives.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

from app.clock import Clock
from app.reliability.ledger import Book, Ledger, Selection, merge
from app.reliability.stores.redis import SharedStore, StoreUnavailable
from app.reliability.stores.redis_ledger import RedisLedger
from app.reliability.stores.sqlite_ledger import AT_ONCE, FILE, SqliteLedger

log = logging.getLogger("gllm.ledger")

P = ParamSpec("P")
T = TypeVar("T")

GATEWAY, TOLD = "gateway", "told"
"""Facts in the file: who this gateway is to others, and how often it has told Redis something, by Redis's own count."""

ROUNDS_UNTIL_SURE = 10


@dataclass(frozen=True)
class Report:
    book: Book
    scope: Literal["gateway", "cluster"]
    note: str | None = None
    """Why it is not the whole truth, if it is not."""


class Unreadable(Exception):
    """Nothing can be told at the moment."""


class Books:
    def __init__(
        self,
        ledger: Ledger,
        state_dir: Path,
        every_s: float,
        store: SharedStore | None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.ledger = ledger
        self.failures = 0
        """Times that writing went wrong."""
        self._clock = clock
        self._well_at = clock()
        self._every_s = every_s
        self._own = SqliteLedger(state_dir / FILE)
        self._shared = RedisLedger(store) if store is not None else None
        self._thread = _one_thread()
        self._unwritten = Ledger(ledger.today)
        """Not in the file yet. The thread's, as the file is."""
        self._untold = store is not None
        self._rounds = 0
        self._turn = asyncio.Lock()
        self._trouble = ""

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            await self.flush()

    async def flush(self) -> None:
        """Writes and shares what there is. What fails is told once, kept, and tried again."""
        async with self._turn:
            try:
                await self._write()
                self._well_at = self._clock()
                await self._share()
            except StoreUnavailable:
                pass  # the store tells it
            except Exception as error:  # the counting must not end what it counts
                self._troubled(error)
                return
            self._well()

    async def report(self, selection: Selection) -> Report:
        """Raises `Unreadable`."""
        await self.flush()
        note = None
        try:
            if self._shared is not None:
                try:
                    book = await self._shared.select(selection)
                    return Report(await self._in_thread(self._completed, book, selection), "cluster")
                except StoreUnavailable:
                    note = "The shared store is down: this is what this gateway alone has counted."
            return Report(await self._in_thread(self._counted, selection), "gateway", note)
        except (sqlite3.Error, OSError) as error:
            self._troubled(error)
            raise Unreadable from error

    async def aclose(self) -> None:
        """Writes the last. Whatever is used after all opens the books again."""
        await self.flush()
        await self._in_thread(self._end)
        thread, self._thread = self._thread, _one_thread()
        thread.shutdown()

    @property
    def unwritten(self) -> int:
        """Rows that are in memory only."""
        return len(self.ledger) + len(self._unwritten)

    @property
    def age_s(self) -> float:
        """How long ago all there was could be written."""
        return self._clock() - self._well_at

    # --- into the file --------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        if len(self.ledger) or len(self._unwritten):
            self._untold = self._shared is not None
            await self._in_thread(self._add, self.ledger.take())

    def _add(self, taken: Book) -> None:
        self._unwritten.merge(taken)
        self._own.add(self._unwritten.book)
        self._unwritten.take()

    def _counted(self, selection: Selection) -> Book:
        return self._completed(self._own.select(selection), selection)

    def _completed(self, book: Book, selection: Selection) -> Book:
        merge(book, {key: amounts for key, amounts in self._unwritten.book.items() if selection.takes(key)})
        return book

    def _end(self) -> None:
        for (day, tenant, model), amounts in self._unwritten.take().items():
            log.error("usage that could not be written: %s %r %r %r", day, tenant, model, amounts)
        self._own.close()

    # --- to the other gateways ------------------------------------------------------------------------------------

    async def _share(self) -> None:
        """Now and then even when there is nothing to tell: a Redis that has forgotten shows by its count."""
        if self._shared is None:
            return
        self._rounds += 1
        self._untold = self._untold or self._rounds % ROUNDS_UNTIL_SURE == 0
        while self._untold:
            gateway, totals, known = await self._in_thread(self._to_tell)
            number = await self._shared.tell(gateway, totals, known)
            self._untold = await self._in_thread(self._told, totals, known, number)

    def _to_tell(self) -> tuple[str, Book, int]:
        return self._own.fact(GATEWAY), self._own.unshared(), int(self._own.known(TOLD) or 0)

    def _told(self, totals: Book, known: int, number: int) -> bool:
        """Whether there is more to tell."""
        forgotten = number < known
        if forgotten:
            self._own.share_all_again(self.ledger.today())
        if number != known:
            self._own.learn(TOLD, str(number))
        self._own.shared(totals)
        return forgotten or len(totals) == AT_ONCE

    # --- the thread, and what goes wrong in it --------------------------------------------------------------------

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Begun is done, even if nobody waits for it any more: what was taken must arrive."""
        return await asyncio.shield(asyncio.wrap_future(self._thread.submit(work, *args, **kwargs)))

    def _troubled(self, error: Exception) -> None:
        self.failures += 1
        told = f"{type(error).__name__}: {error}"
        if told != self._trouble:
            self._trouble = told
            foreseen = isinstance(error, sqlite3.Error | OSError)
            log.error("usage cannot be written and is kept in memory: %s", told, exc_info=None if foreseen else error)

    def _well(self) -> None:
        if self._trouble:
            self._trouble = ""
            log.warning("usage is written again")


def _one_thread() -> ThreadPoolExecutor:
    """It starts when it is first needed."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
