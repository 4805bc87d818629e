"""What gateways that share a Redis know together of their workers: where these are, and who is changing models."""

from collections.abc import Sequence

from app.reliability.stores.redis import PREFIX, Script, SharedStore

KEPT_S = 300.0
"""An address that no gateway found well for so long is not told any more. Gateways may all be away for a while."""

_ADDRESSES = f"{PREFIX}{{workers}}:addresses"
_TURN = f"{PREFIX}{{swap}}"

_SHARE = Script("""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[1]))
return redis.call('ZRANGE', KEYS[1], 0, -1)
""")
"""KEYS: addresses. ARGV: seconds to keep them, addresses that are well."""

_RENEW = Script("""
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")
"""KEYS: the turn. ARGV: token, lease in ms. Takes it too, where nobody holds it."""

_FREE = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
""")
"""KEYS: the turn. ARGV: token."""


class RedisAddresses:
    """Every call may raise `StoreUnavailable`."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    async def share(self, alive: Sequence[str]) -> list[str]:
        return [address.decode() for address in await self._store.run(_SHARE, [_ADDRESSES], [KEPT_S, *alive])]

    async def withdraw(self, address: str) -> None:
        await self._store.command("ZREM", _ADDRESSES, address)


class RedisTurn:
    """Every call may raise `StoreUnavailable`."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    async def take(self, token: str, lease_s: float) -> bool:
        return bool(await self._store.run(_RENEW, [_TURN], [token, int(lease_s * 1e3)]))

    async def renew(self, token: str, lease_s: float) -> bool:
        return await self.take(token, lease_s)

    async def free(self, token: str) -> None:
        await self._store.run(_FREE, [_TURN], [token])

    async def is_free(self) -> bool:
        return not await self._store.command("EXISTS", _TURN)
