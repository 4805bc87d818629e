"""Keys and their answers in Redis: what is asked of it, each an atomic step.

A key's hash holds the fingerprint `f`, the owner's token `o`, and once it is answered the answer `a`. What a run says
is a stream beside it. A token begins with its gateway's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.clock import Clock
from app.errors import StoreDown
from app.reliability.stores.answers import Batch, Kept, Key
from app.reliability.stores.redis import PREFIX, Part, Script, SharedStore, StoreUnavailable

FOLLOWED_S = 5.0
"""For so long word of a follower counts; it is left again well before."""

_CLAIM = Script("""
local held = redis.call('HMGET', KEYS[1], 'f', 'o', 'a')
if not held[1] then
  if ARGV[2] == '' then return {'free'} end
  redis.call('HSET', KEYS[1], 'f', ARGV[1], 'o', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {'ours'}
end
if held[1] ~= ARGV[1] then return {'reused'} end
if held[3] then return {'kept', held[3]} end
return {'held', held[2]}
""")
"""KEYS: state. ARGV: fingerprint, token (empty: only look), lease in ms."""

_RENEW = Script("""
local held = redis.call('HMGET', KEYS[1], 'o', 'a')
if held[2] or (held[1] and held[1] ~= ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'f', ARGV[1], 'o', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
""")
"""KEYS: state, frames. ARGV: fingerprint, token, lease in ms. A Redis that has forgotten all is told again."""

_KEEP = Script("""
local owner = redis.call('HGET', KEYS[1], 'o')
if owner and owner ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'f', ARGV[1], 'o', ARGV[2], 'a', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
""")
"""KEYS: state. ARGV: fingerprint, token, answer, ms to keep it."""

_FREE = Script("""
local held = redis.call('HMGET', KEYS[1], 'o', 'a')
if held[1] == ARGV[1] and not held[2] then redis.call('DEL', KEYS[1]) end
return 1
""")
"""KEYS: state. ARGV: token."""

_PUBLISH = Script("""
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[1], '*', 'b', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
""")
"""KEYS: frames. ARGV: batches to keep, batch, ms to keep them."""

_FOLLOW = Script("""
local news = redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', 16)
if #news > 0 then return {'news', news} end
local held = redis.call('HMGET', KEYS[1], 'o', 'a')
if held[1] ~= ARGV[1] then return {'gone'} end
if held[2] then return {'kept', held[2]} end
return {'nothing'}
""")
"""KEYS: state, frames. ARGV: token, the last batch read."""

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True)
class AnswerKeys:
    """Raises `StoreDown` where Redis does not answer in time."""

    redis: SharedStore
    clock: Clock
    kept_s: float
    lease_s: float

    async def look(self, key: Key) -> list[Any]:
        return await self._run(_CLAIM, [_state(key)], key.fingerprint, "", 0)  # type: ignore[no-any-return]

    async def claim(self, key: Key, token: str) -> list[Any]:
        lease = _ms(self.lease_s)
        return await self._run(_CLAIM, [_state(key)], key.fingerprint, token, lease)  # type: ignore[no-any-return]

    async def renew(self, key: Key, token: str) -> bool:
        """Whether it is still ours."""
        keys = [_state(key), _frames(key, token)]
        return bool(await self._run(_RENEW, keys, key.fingerprint, token, _ms(self.lease_s)))

    async def keep(self, key: Key, token: str, kept: Kept) -> bool:
        """False if another's answer stands there."""
        return bool(
            await self._run(_KEEP, [_state(key)], key.fingerprint, token, _encode(kept), _ms(self.kept_s)),
        )

    async def free(self, key: Key, token: str) -> None:
        await self._run(_FREE, [_state(key)], token)

    async def publish(self, key: Key, token: str, batch: Batch, most: int) -> None:
        """For those who follow. Of earlier batches `most` stay readable."""
        await self._run(_PUBLISH, [_frames(key, token)], most, _encode(batch), _ms(self.lease_s))

    async def follow(self, key: Key, token: str, last: str | bytes) -> list[Any]:
        keys = [_state(key), _frames(key, token)]
        return await self._run(_FOLLOW, keys, token, last)  # type: ignore[no-any-return]

    async def leave_word(self, token: str) -> None:
        """For the gateway that owns it: somebody follows."""
        mailbox = _mailbox(token.partition(".")[0])
        try:
            await self.redis.pipeline([("RPUSH", mailbox, token), ("PEXPIRE", mailbox, _ms(FOLLOWED_S))])
        except StoreUnavailable as error:
            raise StoreDown(retry_after=1.0) from error

    async def words_for(self, gateway: str) -> list[str]:
        """The tokens of its runs that are followed, as far as word has come since the last time."""
        try:
            tokens = await self.redis.command("LPOP", _mailbox(gateway), 1_000)
        except StoreUnavailable as error:
            raise StoreDown(retry_after=1.0) from error
        return [token.decode() for token in tokens or ()]

    async def _run(self, script: Script, keys: Sequence[str], *args: Part) -> Any:
        try:
            return await self.redis.run(script, keys, args)
        except StoreUnavailable as error:
            raise StoreDown(retry_after=1.0) from error


def _ms(seconds: float) -> int:
    return int(seconds * 1e3)


def _state(key: Key) -> str:
    return f"{PREFIX}{{answer:{key.scope}}}"


def _frames(key: Key, token: str) -> str:
    return f"{_state(key)}:{token}"


def _mailbox(gateway: str) -> str:
    return f"{PREFIX}followed:{gateway}"
