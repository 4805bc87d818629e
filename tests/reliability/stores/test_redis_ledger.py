from datetime import date, timedelta
from itertools import permutations

import pytest

from app.reliability.ledger import Amounts, Book, Selection
from app.reliability.stores.redis import SharedStore, StoreUnavailable
from app.reliability.stores.redis_ledger import DAYS_AT_ONCE, KEPT_S, RedisLedger
from tests.reliability.stores.conftest import Stores

TODAY = date(2026, 3, 1)
ONE_DAY = Selection(TODAY, TODAY)


@pytest.fixture
async def store(redis_url: str, stores: Stores) -> SharedStore:
    """Empty, whatever other tests left."""
    store = stores(redis_url)
    await store.command("FLUSHDB")
    return store


@pytest.fixture
def shared(store: SharedStore) -> RedisLedger:
    return RedisLedger(store)


def totals(requests: int, tenant: str = "acme", model: str = "demo", day: date = TODAY) -> Book:
    return {(day, tenant, model): Amounts(requests, 10 * requests, 5 * requests, requests)}


async def test_the_sum_is_over_all_gateways(shared: RedisLedger) -> None:
    await shared.tell("one", totals(3))
    await shared.tell("two", totals(4))
    assert await shared.select(ONE_DAY) == totals(7)


async def test_told_twice_counts_once_and_the_order_does_not_matter(shared: RedisLedger, store: SharedStore) -> None:
    for order in permutations((totals(1), totals(9), totals(10), totals(10))):
        await store.command("FLUSHDB")
        for told in order:
            await shared.tell("one", told)
        assert await shared.select(ONE_DAY) == totals(10)


async def test_it_is_selected_by_day_tenant_and_model(shared: RedisLedger) -> None:
    book: Book = {}
    for back in (0, 1, DAYS_AT_ONCE, 2 * DAYS_AT_ONCE + 1):
        for tenant in ("a", 'b", "x'):
            for model in ("org/x:1", "y z"):
                book |= totals(back + 1, tenant, model, TODAY - timedelta(days=back))
    await shared.tell("one", book)
    for selection in (
        Selection(TODAY - timedelta(days=399), TODAY),
        Selection(TODAY - timedelta(days=DAYS_AT_ONCE), TODAY - timedelta(days=1)),
        Selection(TODAY, TODAY, 'b", "x'),
        Selection(TODAY - timedelta(days=99), TODAY, "a", "org/x:1"),
        Selection(TODAY, TODAY, "nobody"),
    ):
        assert await shared.select(selection) == {key: one for key, one in book.items() if selection.takes(key)}


async def test_each_gateways_tellings_are_counted_and_who_has_nothing_to_tell_counts_for_none(
    shared: RedisLedger,
) -> None:
    assert [await shared.tell("one", totals(1)), await shared.tell("one", totals(2), 1)] == [1, 2]
    assert [await shared.tell("one", {}, 2), await shared.tell("two", {})] == [2, 0]


async def test_a_telling_that_was_forgotten_is_not_counted_on_until_its_gateway_has_learned_that(
    shared: RedisLedger, store: SharedStore
) -> None:
    assert await shared.tell("one", totals(1)) == 1
    snapshot = await store.command("DUMP", "gllm:{ledger}:told:one")
    assert await shared.tell("one", totals(2), 1) == 2
    await store.command("RESTORE", "gllm:{ledger}:told:one", 0, snapshot, "REPLACE")
    assert [await shared.tell("one", totals(3), 2) for _ in range(2)] == [1, 1], "the first answer may have been lost"
    assert await shared.tell("one", totals(3), 1) == 2


async def test_days_are_not_kept_for_ever(shared: RedisLedger, store: SharedStore) -> None:
    await shared.tell("one", totals(1))
    for key in ("gllm:{ledger}:2026-03-01", "gllm:{ledger}:told:one"):
        assert 0 < await store.command("TTL", key) <= KEPT_S


async def test_without_redis_it_is_unavailable(shared: RedisLedger, store: SharedStore) -> None:
    store.available = False
    with pytest.raises(StoreUnavailable):
        await shared.tell("one", totals(1))
    with pytest.raises(StoreUnavailable):
        await shared.select(ONE_DAY)
