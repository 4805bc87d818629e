"""A run of another gateway, read batch by batch as it publishes them."""

import asyncio

import msgspec

from app.errors import ClientGone, Draining, NotReplayable, StoreDown
from app.reliability.stores.answer_keys import FOLLOWED_S, AnswerKeys
from app.reliability.stores.answers import Batch, Elsewhere, Kept, Key, OwnerGone

LOOK_S = 0.05
"""Between two looks for a batch."""

_NOT_THE_CALLS = frozenset((ClientGone.__name__, Draining.__name__))
"""Ends that are the other gateway's own: here the call may go on."""

_batch = msgspec.msgpack.Decoder(Batch).decode
kept_of = msgspec.msgpack.Decoder(Kept).decode


class Followed(Elsewhere):
    def __init__(self, keys: AnswerKeys, key: Key, owner: str) -> None:
        self._keys = keys
        self._key = key
        self._owner = owner
        self._last: str | bytes = "0-0"
        self._count = 0
        self._batches: list[Batch] = []
        self._next_word_at = keys.clock()
        self._heard_at = keys.clock()

    async def next(self) -> Batch:
        """A blink of Redis is waited out: the owner's lease outlasts it too."""
        while not self._batches:
            try:
                await self._look()
                self._heard_at = self._keys.clock()
            except StoreDown:
                if self._keys.clock() > self._heard_at + self._keys.lease_s:
                    raise
            if not self._batches:
                await asyncio.sleep(LOOK_S)
        return self._batches.pop(0)

    async def _look(self) -> None:
        if self._keys.clock() >= self._next_word_at:
            await self._keys.leave_word(self._owner)
            self._next_word_at = self._keys.clock() + FOLLOWED_S / 3
        match await self._keys.follow(self._key, self._owner, self._last):
            case [b"news", news]:
                for self._last, (_, data) in news:
                    self._add(_batch(data))
            case [b"kept", data]:
                self._add(_rest(kept_of(data)))
            case [b"gone"]:
                raise OwnerGone

    def _add(self, batch: Batch) -> None:
        """What was read already does not count again."""
        if batch.failure is not None and batch.failure.kind in _NOT_THE_CALLS:
            raise OwnerGone
        known = max(0, self._count - batch.start)
        fresh = msgspec.structs.replace(batch, start=batch.start + known, frames=batch.frames[known:])
        self._count = fresh.start + len(fresh.frames)
        self._batches.append(fresh)


def _rest(kept: Kept) -> Batch:
    if kept.frames is None:
        raise NotReplayable
    return Batch(0, kept.frames, kept.replica, kept.attempts, ended=True, request=kept.request)
