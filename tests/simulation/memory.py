"""The Redis of a world: a real server that runs the gateway's own scripts, on the world's time.

An interpreter of those scripts written for the simulation would agree with whatever its writer thought that they do.
So it is Redis itself, asked between two steps of the world while its time stands still. Two things about Redis depend
on real time, and both are taken from it: what `TIME` says, and when keys end. Each script gets a few lines put before
it which stand between it and `redis.call`; its own text runs as it is. They keep the ends of keys in a sorted set and
remove what is due before anything else is looked at, so a key that has ended is as gone as in Redis. Commands outside
scripts pass the same lines. What remains real are the numbers that `XADD` gives, which only ever grow.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis.connection import UnixDomainSocketConnection
from redis.exceptions import NoScriptError, ResponseError

from app.reliability.stores.redis_pool import Command, Part
from tests.support.redis_server import redis_server

UNIX_BEGAN_S = 1_770_000_000
"""What Redis's clock shows when the world's shows nothing. It is nobody else's."""

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None

_ON_THE_WORLDS_TIME = """
local now_us = tonumber(table.remove(ARGV))
local redis = (function(real)
  local ends = 'world:ends'
  local function end_in(key, ms)
    if real.call('EXISTS', key) == 0 then return 0 end
    real.call('ZADD', ends, string.format('%.3f', now_us / 1000 + ms), key)
    return 1
  end
  for _, key in ipairs(real.call('ZRANGEBYSCORE', ends, '-inf', string.format('%.3f', now_us / 1000))) do
    real.call('DEL', key)
    real.call('ZREM', ends, key)
  end
  local of_time = {
    TIME = function() return {string.format('%.0f', math.floor(now_us / 1e6)), string.format('%.0f', now_us % 1e6)} end,
    EXPIRE = function(key, s) return end_in(key, s * 1000) end,
    PEXPIRE = end_in,
    PTTL = function(key)
      if real.call('EXISTS', key) == 0 then return -2 end
      local at = real.call('ZSCORE', ends, key)
      return at and math.ceil(at - now_us / 1000) or -1
    end,
    SET = function(key, value, px, ms)
      assert(not px or px == 'PX', 'nobody has told the simulation of this option')
      real.call('ZREM', ends, key)
      local done = real.call('SET', key, value)
      if ms then end_in(key, ms) end
      return done
    end,
  }
  return {
    call = function(command, key, ...)
      if of_time[command] then return of_time[command](key, ...) end
      local answer = real.call(command, key, ...)
      if real.call('EXISTS', key) == 0 then real.call('ZREM', ends, key) end
      return answer
    end,
  }
end)(redis)
"""

_A_COMMAND = "return redis.call(unpack(ARGV))"


class Memory:
    def __init__(self, socket: str) -> None:
        self._connection = UnixDomainSocketConnection(path=socket, protocol=2)  # type: ignore[no-untyped-call,abstract]
        self._loaded: dict[str, str] = {}
        """By text: what the server calls it, with the lines before it."""
        self._scripts: dict[str, str] = {}
        """By digest: the texts that gateways have sent, as far as they are not forgotten."""

    def forget_everything(self) -> None:
        self.forget_scripts()
        self._ask("FLUSHALL")

    def forget_scripts(self) -> None:
        self._scripts.clear()

    def do(self, commands: Sequence[Command], now: float) -> list[Any]:
        """The answers, with what Redis refuses among them."""
        return [self._do(*command, now=now) for command in commands]

    def places_taken(self, now: float) -> list[str]:
        """The ids of requests that hold a part of a tenant's limits, by leases that have not ended."""
        running = [key for key in self._keys(now) if b":running:" in key]
        since = f"({_us(now)}"
        found = [self._do("ZRANGEBYSCORE", key, since, "+inf", now=now) for key in running]
        return sorted(member.decode() for members in found for member in members)

    def keys_claimed(self, now: float) -> list[str]:
        """The tokens by which idempotency keys are held that have no answer yet."""
        states = [key for key in self._keys(now) if b"{answer:" in key and key.endswith(b"}")]
        held = [self._do("HMGET", key, "o", "a", now=now) for key in states]
        return sorted(owner.decode() for owner, answer in held if answer is None)

    def _keys(self, now: float) -> list[bytes]:
        keys: list[bytes] = self._do("KEYS", "gllm:*", now=now)
        return keys

    def _do(self, word: Part, *given: Part, now: float) -> Any:
        match word:
            case "EVALSHA":
                sha, *given_on = given
                if sha not in self._scripts:
                    return NoScriptError("No matching script. Please use EVAL.")
                return self._run(self._scripts[str(sha)], *given_on, now=now)
            case "EVAL":
                text, *given_on = given
                self._scripts[hashlib.sha1(str(text).encode()).hexdigest()] = str(text)
                return self._run(str(text), *given_on, now=now)
            case _:
                return self._run(_A_COMMAND, 0, word, *given, now=now)

    def _run(self, text: str, *given: Part, now: float) -> Any:
        if text not in self._loaded:
            self._loaded[text] = self._ask("SCRIPT", "LOAD", _ON_THE_WORLDS_TIME + text).decode()
        return self._ask("EVALSHA", self._loaded[text], *given, _us(now))

    def _ask(self, *command: Part) -> Any:
        self._connection.send_command(*command)  # type: ignore[no-untyped-call]  # of redis-py
        try:
            return self._connection.read_response()
        except ResponseError as refusal:
            return refusal

    def close(self) -> None:
        self._connection.disconnect()  # type: ignore[no-untyped-call]


_at_hand: list[Memory] = []


@contextmanager
def at_hand() -> Iterator[None]:
    """Worlds in this block have the same server, one after another: to start one takes as long as many a world."""
    if _at_hand:
        yield
        return
    with _started() as memory:
        _at_hand.append(memory)
        try:
            yield
        finally:
            _at_hand.remove(memory)


@contextmanager
def memory() -> Iterator[Memory]:
    """Empty, and nobody else's for as long as the block lasts."""
    with at_hand():
        _at_hand[0].forget_everything()
        yield _at_hand[0]


@contextmanager
def _started() -> Iterator[Memory]:
    with (
        TemporaryDirectory(prefix="gllm-redis-", dir=IN_MEMORY) as folder,
        redis_server(Path(folder), at_socket=True) as server,
    ):
        memory = Memory(server.socket)
        try:
            yield memory
        finally:
            memory.close()


def _us(now: float) -> str:
    return str(round((UNIX_BEGAN_S + now) * 1e6))
