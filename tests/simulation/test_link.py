"""What lies between a gateway and Redis, seen through the gateway's own store: what it is told, and what was done."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from unittest import mock

import pytest

from app.reliability.stores.redis import Script, SharedStore, StoreUnavailable
from tests.simulation.draw import OLDEST, world_of
from tests.simulation.link import TRIP_S, Exchange, Link
from tests.simulation.loop import VirtualLoop, run
from tests.simulation.memory import Memory, memory
from tests.simulation.world import BEGAN_S, StoreFault, StoreTrouble

LIMIT_S = 0.05
ADDS = Script("return redis.call('INCR', KEYS[1])")

House = Callable[[SharedStore, Link], Awaitable[None]]


def play(what: House, fault: StoreFault | None = None) -> tuple[list[Exchange], Memory]:
    """One gateway's store, with its fault from the beginning."""
    world = world_of(OLDEST)
    world = replace(world, settings=world.settings | {"REDIS_TIMEOUT": LIMIT_S})
    exchanges: list[Exchange] = []
    loop = VirtualLoop(BEGAN_S)

    async def main() -> None:
        link = Link(0, world, redis, exchanges)
        with mock.patch("app.reliability.stores.redis.connector", return_value=link.wire):
            store = SharedStore("redis://here", LIMIT_S, loop.time, lambda *news: None)
        if fault is not None:
            link.begin(fault)
        await what(store, link)
        await asyncio.sleep(10)
        await store.aclose()

    with memory() as redis:
        run(loop, main(), seed=1)
        return exchanges, redis


def trouble(kind: StoreTrouble, share: float = 1.0) -> StoreFault:
    return StoreFault(kind, BEGAN_S, BEGAN_S + 1, share)


async def times_out(store: SharedStore, link: Link) -> None:
    began = link.loop.time()
    with pytest.raises(StoreUnavailable):
        await store.run(ADDS, ["key"])
    assert link.loop.time() == pytest.approx(began + LIMIT_S)


async def fails_at_once(store: SharedStore, link: Link) -> None:
    began = link.loop.time()
    with pytest.raises(StoreUnavailable):
        await store.run(ADDS, ["key"])
    assert link.loop.time() <= began + 4 * TRIP_S


def test_without_a_trouble_it_takes_its_way_there_and_back() -> None:
    async def asks(store: SharedStore, link: Link) -> None:
        assert await store.run(ADDS, ["key"]) == 1
        began = link.loop.time()
        assert await store.run(ADDS, ["key"]) == 2
        assert link.loop.time() == pytest.approx(began + 2 * TRIP_S)

    exchanges, _ = play(asks)
    assert [each.commands[0][0] for each in exchanges] == ["EVALSHA", "EVAL", "EVALSHA"]
    assert all(each.answered and not each.done_late for each in exchanges)


def test_a_redis_that_is_gone_refuses_and_breaks_what_there_was() -> None:
    async def asks(store: SharedStore, link: Link) -> None:
        assert await store.run(ADDS, ["key"]) == 1
        asking = asyncio.ensure_future(store.run(ADDS, ["key"]))
        await asyncio.sleep(TRIP_S / 2)
        link.begin(trouble(StoreTrouble.GONE))
        with pytest.raises(StoreUnavailable):
            await asking
        store.available = True
        await fails_at_once(store, link)

    exchanges, redis = play(asks)
    assert [each.done is None for each in exchanges[2:]] == [True, True]
    assert redis.do([("GET", "key")], BEGAN_S) == [b"1"]


def test_what_is_lost_is_never_done() -> None:
    (exchange,), redis = play(times_out, trouble(StoreTrouble.LOST))
    assert exchange.done is None
    assert redis.do([("GET", "key")], BEGAN_S) == [None]


def test_what_is_not_answered_is_done() -> None:
    (exchange,), _ = play(times_out, trouble(StoreTrouble.UNANSWERED))
    assert exchange.done is not None
    assert not exchange.answered
    assert not exchange.done_late


def test_what_is_late_is_done_when_nobody_waits_any_more() -> None:
    (exchange,), _ = play(times_out, trouble(StoreTrouble.LATE))
    assert exchange.done_late


def test_what_is_cut_fails_at_once_whether_it_was_done_or_not() -> None:
    async def asks(store: SharedStore, link: Link) -> None:
        for _ in range(20):
            store.available = True
            await fails_at_once(store, link)

    exchanges, _ = play(asks, trouble(StoreTrouble.CUT))
    assert {each.done is None for each in exchanges} == {True, False}


def test_what_is_slow_comes_in_time_or_not() -> None:
    done: list[bool] = []

    async def asks(store: SharedStore, link: Link) -> None:
        for _ in range(20):
            store.available = True
            try:
                await store.command("INCR", "key")
                done.append(True)
            except StoreUnavailable:
                done.append(False)

    exchanges, redis = play(asks, trouble(StoreTrouble.SLOW))
    assert set(done) == {True, False}
    assert redis.do([("GET", "key")], BEGAN_S) == [b"20"], "all was done"
    assert [each.answered for each in exchanges] == done


def test_who_is_refused_has_had_nothing_done() -> None:
    exchanges, redis = play(fails_at_once, trouble(StoreTrouble.REFUSING))
    assert [each.done for each in exchanges] == [None]
    assert redis.do([("GET", "key")], BEGAN_S) == [None]


def test_a_forgetful_redis_is_told_each_script_again() -> None:
    async def asks(store: SharedStore, link: Link) -> None:
        assert [await store.run(ADDS, ["key"]) for _ in range(2)] == [1, 2]

    exchanges, _ = play(asks, trouble(StoreTrouble.FORGETFUL))
    assert [each.commands[0][0] for each in exchanges] == ["EVALSHA", "EVAL"] * 2


def test_only_a_share_of_what_is_sent_meets_a_fault() -> None:
    async def asks(store: SharedStore, link: Link) -> None:
        for _ in range(100):
            store.available = True
            try:
                await store.command("INCR", "key")
            except StoreUnavailable:
                continue

    exchanges, _ = play(asks, trouble(StoreTrouble.UNANSWERED, share=0.3))
    assert 10 < sum(not each.answered for each in exchanges) < 50
