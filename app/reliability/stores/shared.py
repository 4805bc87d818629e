"""Answers that several gateways share through Redis.

A claim is a lease that its owner renews; `kill -9` frees the key when the lease has run out. What a run says is
published only while another gateway follows it: who begins to follow leaves word in the owner's mailbox.
"""

import asyncio
import secrets
from contextlib import suppress
from typing import Any

from app.errors import KeyReused, StoreDown
from app.reliability.stores.answer_keys import AnswerKeys
from app.reliability.stores.answers import Kept, Key
from app.reliability.stores.followed import Followed, kept_of
from app.reliability.stores.lease import Lease

BEAT_S = 0.05
AT_ONCE = 16
"""Leases cared for side by side."""


class SharedAnswers:
    def __init__(self, keys: AnswerKeys) -> None:
        self._keys = keys
        self._gateway = secrets.token_hex(8)
        self._leases: dict[str, Lease] = {}

    async def claim(self, key: Key) -> Lease | Kept | Followed:
        if not self._keys.redis.available:
            raise StoreDown(retry_after=1.0)
        token = f"{self._gateway}.{secrets.token_hex(8)}"
        lease = Lease(self._keys, key, token)
        try:
            found = self._read(key, await self._keys.claim(key, token))
        except StoreDown:
            lease.doubtful = True
            self._leases[token] = lease
            raise
        if found is not None:
            return found
        self._leases[token] = lease
        return lease

    async def find(self, key: Key) -> Kept | Followed | None:
        return self._read(key, await self._keys.look(key))

    async def run(self) -> None:
        """Cares for the leases, for as long as the gateway lives."""
        while True:
            await asyncio.sleep(BEAT_S)
            with suppress(StoreDown):  # Redis says itself how it is, and a lease outlasts a blink
                await self.beat()

    async def beat(self) -> None:
        self._leases = {token: lease for token, lease in self._leases.items() if not lease.over}
        if not self._leases:
            return
        for token in await self._keys.words_for(self._gateway):
            if lease := self._leases.get(token):
                lease.follow()
        leases = [lease for lease in self._leases.values() if lease.needs_care]
        for start in range(0, len(leases), AT_ONCE):
            await asyncio.gather(*(lease.care() for lease in leases[start : start + AT_ONCE]))

    async def aclose(self) -> None:
        """The connection is another's, and what is still claimed runs out."""

    def _read(self, key: Key, answer: list[Any]) -> Kept | Followed | None:
        match answer:
            case [b"kept", data]:
                return kept_of(data)
            case [b"held", owner]:
                return Followed(self._keys, key, owner.decode())
            case [b"reused"]:
                raise KeyReused
        return None
