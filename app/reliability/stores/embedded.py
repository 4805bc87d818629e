"""Answers of one gateway by itself: finished ones in a file that survives it, claims in memory, as its runs are."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

from app.errors import GatewayError, KeyInFlight, KeyReused, StoreDown
from app.reliability.recording import Recording
from app.reliability.stores.answer_file import AnswerFile
from app.reliability.stores.answers import Kept, Key

log = logging.getLogger("gllm")

LIMIT_S = 1.0
"""For a disk to do one small thing. Those in line behind a hung one are not kept waiting longer."""

P = ParamSpec("P")
T = TypeVar("T")


class EmbeddedAnswers:
    def __init__(self, file: AnswerFile, limit_s: float = LIMIT_S) -> None:
        self._file = file
        self._limit_s = limit_s
        self._thread = ThreadPoolExecutor(1, "answers")
        self._running: dict[str, bytes] = {}
        self._down = False
        self._closed = False

    async def claim(self, key: Key) -> "Kept | Held":
        """The one thread answers in turn, so between the look and the claim no other can have come and gone."""
        self._check_running(key)
        found = await self.find(key)
        if found is not None:
            return found
        self._check_running(key)
        self._running[key.scope] = key.fingerprint
        return Held(self, key)

    async def find(self, key: Key) -> Kept | None:
        found = await self._blocking(self._file.find, key.scope)
        if found is None:
            return None
        fingerprint, answer = found
        if fingerprint != key.fingerprint:
            raise KeyReused
        return answer

    async def put(self, key: Key, answer: Kept) -> None:
        await self._blocking(self._file.put, key, answer)

    async def run(self) -> None:
        """Nothing: claims are in memory, and expired answers go when others come."""

    def release(self, key: Key) -> None:
        self._running.pop(key.scope, None)

    async def aclose(self) -> None:
        if not self._closed:
            with suppress(StoreDown):
                await self._blocking(self._file.close)
            self._closed = True
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _check_running(self, key: Key) -> None:
        holder = self._running.get(key.scope)
        if holder is not None:
            raise KeyInFlight(retry_after=1.0) if holder == key.fingerprint else KeyReused()

    async def _blocking(self, call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limit_s):
                done = await loop.run_in_executor(self._thread, lambda: call(*args, **more))
        except (sqlite3.Error, OSError) as error:  # a `TimeoutError` is one of the latter
            if not self._down:
                log.error("idempotency keys cannot be checked: %r", error)
            self._down = True
            raise StoreDown(retry_after=1.0) from error
        if self._down:
            log.warning("idempotency keys can be checked again")
        self._down = False
        return done


class Held:
    """A claim in memory: nobody can take it away, and nobody follows from elsewhere."""

    followed = False

    def __init__(self, store: EmbeddedAnswers, key: Key) -> None:
        self._store = store
        self._key = key

    def begin(self, recording: Recording, on_lost: Callable[[], None]) -> None:
        """Readers of this process read the recording itself."""

    async def finish(self, recording: Recording) -> None:
        await self._store.put(self._key, Kept.of(recording))
        self._store.release(self._key)

    async def release(self, error: GatewayError) -> None:
        self._store.release(self._key)
