"""Workers' addresses and the turn to change models, in a real Redis."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from app.reliability.stores import redis_cluster
from app.reliability.stores.redis import SharedStore, StoreUnavailable
from app.reliability.stores.redis_cluster import RedisAddresses, RedisTurn


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[SharedStore]:
    store = SharedStore(redis_url, 1.0, time.monotonic, lambda up, reason: None)
    await store.command("FLUSHALL")
    yield store
    await store.aclose()


async def test_an_address_that_one_gateway_tells_all_know(store: SharedStore) -> None:
    one, other = RedisAddresses(store), RedisAddresses(store)
    assert await other.share([]) == []
    assert await one.share(["http://w1:9000", "http://w2:9000"]) == ["http://w1:9000", "http://w2:9000"]
    assert await other.share(["http://w3:9000"]) == ["http://w1:9000", "http://w2:9000", "http://w3:9000"]
    await one.withdraw("http://w2:9000")
    assert await one.share([]) == ["http://w1:9000", "http://w3:9000"]


async def test_one_that_nobody_finds_well_is_told_no_more(store: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = RedisAddresses(store)
    monkeypatch.setattr(redis_cluster, "KEPT_S", 0.05)
    await addresses.share(["http://w1:9000"])
    await asyncio.sleep(0.1)  # by the clock of Redis
    assert await addresses.share([]) == []


async def test_a_turn_is_one_gateways_until_it_is_freed_or_its_lease_ends(store: SharedStore) -> None:
    turn = RedisTurn(store)
    assert await turn.is_free()
    assert await turn.take("a", 10.0)
    assert await turn.take("a", 10.0), "renewed"
    assert not await turn.take("b", 10.0)
    assert not await turn.is_free()
    await turn.free("b")
    assert not await turn.is_free(), "another's is not freed"
    await turn.free("a")
    assert await turn.take("b", 0.05)
    await asyncio.sleep(0.1)
    assert await turn.take("a", 10.0)


async def test_without_redis_it_is_said() -> None:
    store = SharedStore("redis://127.0.0.1:9/0", 0.2, time.monotonic, lambda up, reason: None)
    for asked in (RedisAddresses(store).share([]), RedisTurn(store).take("a", 1.0), RedisTurn(store).is_free()):
        with pytest.raises(StoreUnavailable):
            await asked
    await store.aclose()
