"""Quotas, each with the time it lives in."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from app.reliability.quota import LocalQuota, Quota
from app.reliability.stores.redis import Script, SharedStore
from app.reliability.stores.redis_quota import RedisQuota
from tests.support.clock import FakeClock

GENEROUS_S = 5.0
"""For Redis on a busy machine."""

_LATER = Script("""
for _, levels in ipairs(redis.call('KEYS', 'gllm:{quota}:levels:*')) do
  redis.call('HINCRBYFLOAT', levels, 'at', -ARGV[1] * 1000000)
end
for _, pattern in ipairs({'gllm:{quota}:running:*', 'gllm:{quota}:gateways'}) do
  for _, leases in ipairs(redis.call('KEYS', pattern)) do
    for _, id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
      redis.call('ZINCRBY', leases, -ARGV[1] * 1000000, id)
    end
  end
end
""")
_FORGET = Script("for _, key in ipairs(redis.call('KEYS', 'gllm:{quota}:*')) do redis.call('DEL', key) end")


class World(Protocol):
    @property
    def quota(self) -> Quota: ...

    async def advance(self, seconds: float) -> None: ...

    async def settled(self) -> None:
        """All that was given back has arrived."""
        ...


class LocalWorld:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.quota = LocalQuota(self.clock)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def settled(self) -> None:
        """It arrives at once."""


class SharedWorld:
    """One gateway with Redis. Time passes there by moving into the past what Redis has written down."""

    def __init__(self, store: SharedStore) -> None:
        self.store = store
        self.clock = FakeClock()
        self.quota = RedisQuota(store, self.clock)

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.store.run(_LATER, [], [str(seconds)])

    async def settled(self) -> None:
        await self.quota.settle()


@asynccontextmanager
async def shared_world(url: str) -> AsyncIterator[SharedWorld]:
    store = SharedStore(url, GENEROUS_S, time.monotonic, lambda available, reason: None)
    try:
        await store.run(_FORGET, [])
        yield SharedWorld(store)
    finally:
        await store.aclose()
