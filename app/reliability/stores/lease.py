"""A claim in Redis: ours for as long as we renew it."""

import logging
from collections.abc import Callable
from contextlib import suppress

from app.errors import GatewayError, StoreDown
from app.reliability.recording import Recording
from app.reliability.stores.answer_keys import FOLLOWED_S, AnswerKeys
from app.reliability.stores.answers import Batch, Failure, Kept, Key

log = logging.getLogger("gllm")

BATCH_BYTES = 256 * 1024
FEW_BATCHES, ALL_BATCHES = 64, 10_000_000
"""Those that stay readable elsewhere: of an answer that is too large to be kept, and of another."""


class Lease:
    def __init__(self, keys: AnswerKeys, key: Key, token: str) -> None:
        self.over = False
        self.doubtful = False
        """Not held any more; but it may still stand there, because Redis did not answer."""
        self._keys = keys
        self._key = key
        self._token = token
        self._renewed_at = keys.clock()
        self._followed_until = 0.0
        self._recording: Recording | None = None
        self._on_lost: Callable[[], None] = lambda: None
        self._published = 0

    @property
    def followed(self) -> bool:
        return self._keys.clock() < self._followed_until

    def follow(self) -> None:
        """Word has come from somebody who does."""
        self._followed_until = self._keys.clock() + FOLLOWED_S

    def begin(self, recording: Recording, on_lost: Callable[[], None]) -> None:
        self._recording = recording
        self._on_lost = on_lost

    async def finish(self, recording: Recording) -> None:
        if not recording.kept and self.followed:
            await self.publish()
            await self._say(self._batch(self._published, [], ended=True))
        if not await self._keys.keep(self._key, self._token, Kept.of(recording)):
            log.warning("a request was answered twice: its lease ran out while Redis could not be reached")
        self.over = True

    async def release(self, error: GatewayError) -> None:
        """Also if Redis does not answer: then it is tried again until it does."""
        self.doubtful = True
        with suppress(StoreDown):
            if self.followed:
                await self.publish()
                await self._say(Batch(self._published, [], failure=Failure.of(error)))
            await self.free()

    async def free(self) -> None:
        await self._keys.free(self._key, self._token)
        self.over = True

    @property
    def needs_care(self) -> bool:
        return self.doubtful or self.followed or self._is_due

    async def care(self) -> None:
        with suppress(StoreDown):  # soon it is tried again
            if self.doubtful:
                await self.free()
            elif not self.over:
                if self._is_due:
                    await self._renew()
                if self.followed:
                    await self.publish()

    async def publish(self) -> None:
        """All that followers have not been given. Two at once may give them something twice; they notice."""
        recording = self._recording
        while recording is not None and self._published < len(recording):
            start, frames = recording.since(self._published, BATCH_BYTES)
            await self._say(self._batch(start, frames))
            self._published = start + len(frames)

    def _batch(self, start: int, frames: list[bytes], *, ended: bool = False) -> Batch:
        assert self._recording is not None, "there is something to tell of only after it has begun"
        made = self._recording
        return Batch(start, frames, made.replica, made.attempts, ended, request=made.request)

    async def _say(self, batch: Batch) -> None:
        kept = self._recording is None or self._recording.kept
        await self._keys.publish(self._key, self._token, batch, ALL_BATCHES if kept else FEW_BATCHES)

    @property
    def _is_due(self) -> bool:
        return self._keys.clock() >= self._renewed_at + self._keys.lease_s / 3

    async def _renew(self) -> None:
        now = self._keys.clock()
        held = await self._keys.renew(self._key, self._token)
        self._renewed_at = now
        if not held and not self.over:
            self.over = True
            self._on_lost()
