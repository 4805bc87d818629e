"""Redis on the world's time: what lasts there lasts as long as it should, and nothing else is different."""

from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import NoScriptError, ResponseError

from app.reliability.stores.quota_scripts import RENEW, RESERVE, SETTLE
from app.reliability.stores.redis import Script
from tests.simulation.memory import UNIX_BEGAN_S, Memory, memory

NOW = 1_000.0


@pytest.fixture
def redis() -> Iterator[Memory]:
    with memory() as empty:
        yield empty


def script(redis: Memory, text: str, *keys: str, at: float = NOW) -> Any:
    return redis.do([("EVAL", text, len(keys), *keys)], at)[0]


def test_its_clock_shows_the_worlds_time(redis: Memory) -> None:
    assert script(redis, "return redis.call('TIME')", at=NOW + 0.25) == [b"%d" % (UNIX_BEGAN_S + 1_000), b"250000"]


def test_a_key_ends_when_its_time_is_over_and_not_before(redis: Memory) -> None:
    redis.do([("SET", "key", "value", "PX", 500)], NOW)
    assert redis.do([("GET", "key"), ("PTTL", "key")], NOW + 0.499) == [b"value", 1]
    assert redis.do([("GET", "key"), ("PTTL", "key")], NOW + 0.5) == [None, -2]


def test_what_a_script_lets_end_ends_for_others_too(redis: Memory) -> None:
    script(redis, "redis.call('HSET', KEYS[1], 'a', 1) redis.call('EXPIRE', KEYS[1], 2)", "hash")
    assert redis.do([("HGETALL", "hash")], NOW + 1.9) == [[b"a", b"1"]]
    assert redis.do([("HGETALL", "hash")], NOW + 2.0) == [[]]
    assert redis.do([("KEYS", "*")], NOW + 2.0) == [[]]


def test_a_longer_time_replaces_a_shorter_one(redis: Memory) -> None:
    redis.do([("RPUSH", "list", "a"), ("PEXPIRE", "list", 100), ("PEXPIRE", "list", 900)], NOW)
    assert redis.do([("LPOP", "list", 5)], NOW + 0.5) == [[b"a"]]


@pytest.mark.parametrize("end", [("DEL", "set"), ("ZREM", "set", "a")])
def test_who_comes_after_a_key_that_was_emptied_has_no_end(redis: Memory, end: tuple[str, ...]) -> None:
    redis.do([("ZADD", "set", 1, "a"), ("PEXPIRE", "set", 100), end, ("ZADD", "set", 1, "b")], NOW)
    assert redis.do([("PTTL", "set"), ("ZCARD", "set")], NOW + 1) == [-1, 1]


def test_there_is_no_end_for_what_is_not_there(redis: Memory) -> None:
    assert redis.do([("PEXPIRE", "nothing", 100)], NOW) == [0]


def test_a_script_is_known_by_its_digest_until_it_is_forgotten(redis: Memory) -> None:
    known = Script("return {KEYS[1], ARGV[1], #ARGV}")
    again = ("EVALSHA", known.sha, 1, "key", "given")
    assert isinstance(redis.do([again], NOW)[0], NoScriptError)
    assert redis.do([("EVAL", known.text, 1, "key", "given"), again], NOW) == [[b"key", b"given", 1]] * 2
    redis.forget_scripts()
    assert isinstance(redis.do([again], NOW)[0], NoScriptError)


def test_what_it_refuses_stands_among_the_answers(redis: Memory) -> None:
    first, second, third = redis.do([("SET", "key", "text"), ("RPUSH", "key", "a"), ("GET", "key")], NOW)
    assert (first, third) == (b"OK", b"text")
    assert isinstance(second, ResponseError)
    assert "WRONGTYPE" in str(second)


def test_a_world_begins_with_nothing(redis: Memory) -> None:
    redis.do([("SET", "key", "value", "PX", 500)], NOW)
    with memory() as other:
        assert other.do([("KEYS", "*"), ("PTTL", "key")], NOW) == [[], -2]


def test_places_are_taken_until_they_are_settled_or_their_leases_end(redis: Memory) -> None:
    keys = ("gllm:{quota}:levels:acme", "gllm:{quota}:running:acme")
    lease_us = 15_000_000
    for name in ("g-0:0", "g-1:0"):
        redis.do([("EVAL", RESERVE.text, 2, *keys, name, lease_us, 10, 0, 1, 60, 1_000, 4)], NOW)
    assert redis.places_taken(NOW) == ["g-0:0", "g-1:0"]
    redis.do([("EVAL", SETTLE.text, 2, *keys, lease_us, "g-0:0", 0, 10)], NOW + 1)
    assert redis.places_taken(NOW + 14.9) == ["g-1:0"]
    redis.do([("EVAL", RENEW.text, 3, "gllm:{quota}:gateways", *keys, "g", lease_us, "g-1:0")], NOW + 14.9)
    assert redis.places_taken(NOW + 29.8) == ["g-1:0"]
    assert redis.places_taken(NOW + 30.0) == []
