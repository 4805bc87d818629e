"""One change of models at a time: here, and among all gateways that share a store."""

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import Protocol

from app.errors import LoadInProgress
from app.reliability.stores.redis import StoreUnavailable

log = logging.getLogger("gllm")

LEASE_S = 15.0
RENEWED_S = 4.0
COME_AGAIN_S = 5.0


class SharedTurn(Protocol):
    """Every call may raise `StoreUnavailable`."""

    async def take(self, token: str, lease_s: float) -> bool:
        """Whether it is ours, and for so long. Taken again, it lasts longer."""
        ...

    async def free(self, token: str) -> None: ...

    async def is_free(self) -> bool: ...


class Turn:
    def __init__(self, shared: SharedTurn | None = None) -> None:
        self._shared = shared
        self._token = ""

    async def is_free(self) -> bool:
        if self._token or self._shared is None:
            return not self._token
        try:
            return await self._shared.is_free()
        except StoreUnavailable:
            return True

    async def take(self) -> None:
        """`LoadInProgress` where it is somebody else's. Without the store it is ours among our own callers only; the
        workers themselves carry out one order at a time."""
        if self._token:
            raise LoadInProgress(retry_after=COME_AGAIN_S)
        self._token = secrets.token_hex(8)
        try:
            if not await self._still_ours():
                text = "Another gateway is carrying out a change of models."
                raise LoadInProgress(text, retry_after=COME_AGAIN_S)
        except BaseException:
            await self.free()
            raise

    async def keep(self) -> None:
        """Renews it; returns when it is lost."""
        while True:
            if not await self._still_ours():
                break
            await asyncio.sleep(RENEWED_S)
        log.warning("another gateway has begun a change of models before ours was over")

    async def free(self) -> None:
        token, self._token = self._token, ""
        if self._shared is not None:
            with suppress(StoreUnavailable):  # then it ends with its lease
                await self._shared.free(token)

    async def _still_ours(self) -> bool:
        if self._shared is None:
            return True
        try:
            return await self._shared.take(self._token, LEASE_S)
        except StoreUnavailable:
            return True
