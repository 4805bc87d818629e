"""The limits of several gateways together: exact between them, and back soon after a gateway or Redis died."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import LargerThanLimit, RateLimited
from app.generation import Call, Expected
from app.reliability.quota import LocalQuota, Quota, Reservation
from app.reliability.stores import redis_quota as subject
from app.reliability.stores.bundle import Told, nobody
from app.reliability.stores.redis import Part, Script, SharedStore, StoreUnavailable
from app.reliability.stores.redis_quota import COUNTS, LEASE_S, ON_ITS_WAY_S, RedisQuota
from app.tenant import Kind, Limits, Tenant
from tests.reliability.calls import call, expected, tenant
from tests.reliability.worlds import GENEROUS_S, SharedWorld, shared_world
from tests.support.clock import FakeClock
from tests.support.redis_server import RedisServer, redis_server
from tests.support.until import until


@pytest.fixture
async def world(redis_url: str) -> AsyncIterator[SharedWorld]:
    async with shared_world(redis_url) as world:
        yield world


def gateway(store: SharedStore) -> RedisQuota:
    return RedisQuota(store, FakeClock())


async def use(quota: Quota, of: Tenant, what: Expected | None = None, used: int | None = 0) -> dict[Kind, int]:
    async with quota.reserve(call(of), what or expected()) as reservation:
        reservation.used = used
    if isinstance(quota, RedisQuota):
        await quota.settle()
    return {each.kind: each.remaining for each in reservation.standing}


async def pass_by(world: SharedWorld, tenants: Sequence[Tenant], seconds: float) -> None:
    """The leases of these come nearer to their ends; what others have is left alone."""
    for of in tenants:
        running = f"gllm:{{quota}}:running:{of.name}"
        for lease in await world.store.command("ZRANGE", running, 0, -1):
            await world.store.command("ZINCRBY", running, -int(seconds * 1e6), lease)


async def is_refused(quota: Quota, of: Tenant, what: Expected | None = None) -> bool:
    try:
        await use(quota, of, what)
    except RateLimited:
        return True
    return False


# --- several gateways -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [tenant(requests=40), tenant(tokens=400), tenant(concurrent=40)], ids=["r", "t", "c"])
async def test_three_gateways_grant_exactly_what_the_limit_says(world: SharedWorld, redis_url: str, of: Tenant) -> None:
    async with AsyncExitStack() as running:
        stores = [SharedStore(redis_url, GENEROUS_S, time.monotonic, lambda *news: None) for _ in range(3)]
        for store in stores:
            running.push_async_callback(store.aclose)
        gateways = [gateway(store) for store in stores]
        entered = await asyncio.gather(
            *[_enter(running, gateways[n % 3].reserve(call(of), expected(10))) for n in range(100)]
        )
    assert sum(entered) == 40


async def _enter(running: AsyncExitStack, reservation: Any) -> bool:
    try:
        await running.enter_async_context(reservation)
    except RateLimited:
        return False
    return True


async def test_what_one_gateway_settles_the_others_see(world: SharedWorld) -> None:
    of, (one, other) = tenant(requests=10, tokens=1_000), (gateway(world.store), gateway(world.store))
    await use(one, of, expected(500), used=100)
    left = await use(other, of, expected(0))
    assert left == {Kind.REQUESTS: 8, Kind.TOKENS: pytest.approx(900, abs=30)}


async def test_a_place_that_is_on_its_way_back_is_waited_for(world: SharedWorld) -> None:
    """Whoever has read an answer may ask again at once, of another gateway too."""
    of, (one, other) = tenant(concurrent=1), (gateway(world.store), gateway(world.store))
    async with one.reserve(call(of), expected()):
        pass
    coming = asyncio.create_task(use(other, of))
    await asyncio.sleep(ON_ITS_WAY_S / 5)
    assert not coming.done()
    await one.settle()
    assert await coming == {Kind.CONCURRENT: 0}


async def test_one_that_lacks_more_than_a_place_is_refused_at_once(world: SharedWorld) -> None:
    of = tenant(requests=1, concurrent=1)
    async with world.quota.reserve(call(of), expected()):
        began = time.monotonic()
        assert await is_refused(gateway(world.store), of)
        assert time.monotonic() - began < ON_ITS_WAY_S


async def test_one_that_leaves_while_it_waits_for_a_place_leaves_nothing(world: SharedWorld) -> None:
    quota = gateway(world.store)
    async with world.quota.reserve(call(ALL), expected(0)):
        waiting = asyncio.create_task(use(quota, ALL, expected(500)))
        await asyncio.sleep(ON_ITS_WAY_S / 5)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
    await world.quota.settle()
    await quota.settle()
    assert await use(gateway(world.store), ALL, expected(0)) == {
        Kind.REQUESTS: 8,
        Kind.TOKENS: 1_000,
        Kind.CONCURRENT: 0,
    }


async def test_gateways_learn_how_many_they_are(world: SharedWorld) -> None:
    one, other = gateway(world.store), gateway(world.store)
    await one.renew()
    await other.renew()
    await one.renew()
    assert (one.gateways, other.gateways) == (2, 2)
    await world.advance(LEASE_S + 0.001)
    for _ in range(COUNTS):
        await one.renew()
    assert one.gateways == 1


async def test_a_redis_that_has_forgotten_does_not_make_gateways_few(world: SharedWorld) -> None:
    one, other = gateway(world.store), gateway(world.store)
    for each in (one, other, one):
        await each.renew()
    await world.store.command("DEL", "gllm:{quota}:gateways")
    await one.renew()
    assert (one.gateways, other.gateways) == (2, 2), "the other has had no time yet to say that it lives"


# --- gateways that die ------------------------------------------------------------------------------------------------


async def test_what_a_killed_gateway_held_comes_back_when_its_leases_end(world: SharedWorld) -> None:
    of, killed = tenant(tokens=1_000, concurrent=1), gateway(world.store)
    held = killed.reserve(call(of), expected(100, most=100_000))
    await held.__aenter__()
    await world.advance(LEASE_S - 1)
    assert await is_refused(world.quota, of)
    await world.advance(1)
    left = await use(world.quota, of, expected(500))
    assert left[Kind.CONCURRENT] == 0
    assert not await is_refused(world.quota, of, expected(900)), "nor is it exposed any more to what the dead one had"


async def test_what_is_renewed_stays_held(world: SharedWorld) -> None:
    of = tenant(concurrent=1)
    async with world.quota.reserve(call(of), expected()):
        for _ in range(10):
            await world.advance(subject.RENEWED_S)
            await world.quota.renew()
            assert await is_refused(gateway(world.store), of)
    await world.settled()
    assert not await is_refused(gateway(world.store), of)


async def test_renewals_go_out_in_batches(world: SharedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "BATCH", 3)
    of = tenant(concurrent=10, models={"demo": Limits(concurrent=10)})
    async with AsyncExitStack() as running:
        for _ in range(10):
            await running.enter_async_context(world.quota.reserve(call(of), expected()))
        await world.advance(10)
        await world.quota.renew()
        await world.advance(10)
        assert await is_refused(gateway(world.store), of)
    await world.settled()
    assert (await use(gateway(world.store), of))[Kind.CONCURRENT] == 9


@pytest.mark.parametrize("kind", ["levels", "running"])
async def test_a_key_that_somebody_else_has_used_costs_its_tenant_and_no_other(world: SharedWorld, kind: str) -> None:
    spoilt, others = tenant(concurrent=1), [tenant(name=name, concurrent=1) for name in "abcde"]
    async with AsyncExitStack() as running:
        for of in (*others[:3], spoilt, *others[3:]):
            await running.enter_async_context(world.quota.reserve(call(of), expected()))
        key = f"gllm:{{quota}}:{kind}:{spoilt.name}"
        await world.store.command("SET", key, "no business of ours", "PX", 60_000)
        await pass_by(world, others, LEASE_S - 1)
        await world.quota.renew()
        assert world.quota.gateways == 1
        await pass_by(world, others, LEASE_S - 1)
        assert [await is_refused(gateway(world.store), of) for of in others] == [True] * 5, "they are held still"
    await world.settled()
    assert [await is_refused(gateway(world.store), of) for of in others] == [False] * 5


async def test_nothing_stays_in_redis_for_good(world: SharedWorld) -> None:
    await world.quota.renew()
    for limits in (tenant(5, 5, 5), tenant(name="b", tokens=100), tenant(name="c", concurrent=1)):
        async with world.quota.reserve(call(limits), expected(1)):
            await world.quota.renew()
            await _assert_all_expire(world.store)
        await world.settled()
        await _assert_all_expire(world.store)


async def _assert_all_expire(store: SharedStore) -> None:
    for key in await store.command("KEYS", "gllm:{quota}:*"):
        assert await store.command("PTTL", key) > 0, key


async def test_a_debt_is_kept_until_it_is_paid(world: SharedWorld) -> None:
    of = tenant(tokens=60)
    await use(world.quota, of, expected(60), used=60 * 10)
    (key,) = await world.store.command("KEYS", "gllm:{quota}:levels:*")
    assert await world.store.command("PTTL", key) > 9 * 60_000


# --- answers that do not come -----------------------------------------------------------------------------------------


class Lossy:
    """A store that does what it is asked, and whose next answer is lost."""

    longest_s = 1.0

    def __init__(self, store: SharedStore) -> None:
        self.store = store
        self.available = True
        self.lose: BaseException | None = None
        self.asked = 0

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[Part] = (), abandoned: Told = nobody
    ) -> Any:
        self.asked += 1
        answer = await self.store.run(script, keys, args)
        if self.lose is not None:
            lost, self.lose = self.lose, None
            if isinstance(lost, asyncio.CancelledError):
                abandoned()
            raise lost
        return answer


@pytest.fixture
def lossy(world: SharedWorld) -> Lossy:
    return Lossy(world.store)


def behind(lossy: Lossy) -> RedisQuota:
    return RedisQuota(lossy, FakeClock())  # type: ignore[arg-type]  # as much of a store as is used


ALL = tenant(requests=10, tokens=1_000, concurrent=1)


async def untouched(world: SharedWorld) -> bool:
    left = await use(gateway(world.store), ALL, expected(0))
    return left == {Kind.REQUESTS: 9, Kind.TOKENS: 1_000, Kind.CONCURRENT: 0}


async def test_a_call_cancelled_while_it_reserves_leaves_nothing(world: SharedWorld, lossy: Lossy) -> None:
    quota = behind(lossy)
    lossy.lose = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await use(quota, ALL, expected(500))
    assert await is_refused(world.quota, ALL)
    await quota.settle()
    assert await untouched(world)


async def test_a_reservation_that_was_not_confirmed_is_made_here_and_given_back_there(
    world: SharedWorld, lossy: Lossy
) -> None:
    quota = behind(lossy)
    lossy.lose = StoreUnavailable()
    async with quota.reserve(call(ALL), expected(500)) as reservation:
        assert {each.limit for each in reservation.standing} == {5, 500, 1}
    await quota.settle()
    assert await untouched(world)


async def test_a_settlement_that_was_not_confirmed_is_sent_again_and_counts_once(
    world: SharedWorld, lossy: Lossy
) -> None:
    quota = behind(lossy)
    async with quota.reserve(call(ALL), expected(500)) as reservation:
        reservation.used = 800
    lossy.lose = StoreUnavailable()
    await quota.settle()
    await quota.settle()
    left = await use(gateway(world.store), ALL, expected(0))
    assert left == {Kind.REQUESTS: 8, Kind.TOKENS: pytest.approx(200, abs=30), Kind.CONCURRENT: 0}


async def test_leaving_waits_for_nothing_and_what_ends_together_is_settled_together(
    lossy: Lossy, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota, of = behind(lossy), tenant(concurrent=100)
    async with AsyncExitStack() as running:
        for _ in range(20):
            await running.enter_async_context(quota.reserve(call(of), expected()))
    assert lossy.asked == 20
    await quota.settle()
    assert lossy.asked == 21
    monkeypatch.setattr(subject, "BATCH", 1)
    await use(quota, of)
    assert lossy.asked == 23


async def test_what_cannot_be_sent_is_bounded(lossy: Lossy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "UNSENT", 5)
    quota, of = behind(lossy), tenant(concurrent=100)
    for _ in range(20):
        async with quota.reserve(call(of), expected()):
            pass
    assert len(quota._unsent) == 5


# --- the loop ---------------------------------------------------------------------------------------------------------


async def test_the_loop_sends_what_is_given_back_and_says_that_the_gateway_lives(world: SharedWorld) -> None:
    running = asyncio.create_task(world.quota.run())
    of = tenant(concurrent=1)
    for _ in range(3):
        async with world.quota.reserve(call(of), expected()):
            pass
        async with asyncio.timeout(GENEROUS_S):
            while await is_refused(gateway(world.store), of):
                await asyncio.sleep(0)
    assert world.quota.gateways == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_loop_holds_up_nothing_that_is_given_back(world: SharedWorld) -> None:
    """Who asks one after the other never meets a limit of one."""
    running = asyncio.create_task(world.quota.run())
    async with world.quota.reserve(call(tenant(concurrent=1)), expected()):
        while world.quota.gateways is None:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
    await until(lambda: not world.quota._unsent, steps=20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_loop_sends_the_last_before_it_ends(world: SharedWorld) -> None:
    running = asyncio.create_task(world.quota.run())
    of = tenant(concurrent=1)
    async with world.quota.reserve(call(of), expected()):
        await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert not await is_refused(gateway(world.store), of)


async def test_the_loop_outlives_an_absent_redis(lossy: Lossy) -> None:
    quota = behind(lossy)
    async with quota.reserve(call(ALL), expected()):
        lossy.lose = StoreUnavailable()
    running = asyncio.create_task(quota.run())
    async with asyncio.timeout(GENEROUS_S):
        while quota.gateways is None:
            await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert quota._unsent == []


async def test_what_is_due_by_the_loops_clock_is_done_though_ours_be_behind(
    world: SharedWorld, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a rounding, as a rule: then it would spin until the clock has caught up."""
    monkeypatch.setattr(subject, "RENEWED_S", 0.01)
    running = asyncio.create_task(behind(lossy).run())
    await until_asked(lossy, 3)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def until_asked(lossy: Lossy, times: int) -> None:
    async with asyncio.timeout(5):
        while lossy.asked < times:
            await asyncio.sleep(0.01)


# --- without Redis ----------------------------------------------------------------------------------------------------


class Away:
    available = False
    longest_s = 1.0

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[Part] = (), abandoned: Told = nobody
    ) -> Any:
        raise StoreUnavailable


def alone(gateways: int | None = None) -> RedisQuota:
    quota = RedisQuota(Away(), FakeClock())  # type: ignore[arg-type]  # as much of a store as is used
    quota.gateways = gateways
    return quota


@pytest.mark.parametrize(("gateways", "granted"), [(None, 20), (1, 40), (2, 20), (3, 13), (100, 1)])
@pytest.mark.parametrize("kind", Kind)
async def test_without_redis_a_gateway_lets_in_its_part(gateways: int | None, granted: int, kind: Kind) -> None:
    limits = {
        Kind.REQUESTS: Limits(requests_per_minute=40),
        Kind.TOKENS: Limits(tokens_per_minute=40),
        Kind.CONCURRENT: Limits(concurrent=40),
    }[kind]
    for of in (Tenant("acme", limits=limits), Tenant("acme", model_limits={"demo": limits})):
        quota = alone(gateways)
        async with AsyncExitStack() as running:
            entered = [await _enter(running, quota.reserve(call(of), expected(1))) for _ in range(100)]
        assert sum(entered) == granted


async def test_without_redis_what_fits_into_the_whole_limit_is_let_in_and_owed() -> None:
    quota, of = alone(gateways=4), tenant(tokens=400)
    assert await use(quota, of, expected(300), used=300) == {Kind.TOKENS: 0}
    with pytest.raises(RateLimited) as raised:
        await use(quota, of, expected(10))
    assert raised.value.retry_after == pytest.approx((200 + 10) / 100 * 60)
    with pytest.raises(LargerThanLimit):
        await use(quota, of, expected(401))


async def test_without_redis_nothing_is_kept_to_be_sent() -> None:
    quota = alone()
    await use(quota, ALL)
    assert quota._unsent == []


@pytest.fixture
def server(tmp_path: Path) -> Any:
    with redis_server(tmp_path) as own:
        yield own


async def test_when_redis_goes_limits_hold_in_part_and_when_it_is_back_they_are_whole(server: RedisServer) -> None:
    """The store watches; nobody has to do anything."""
    came_and_went: list[bool] = []
    store = SharedStore(
        server.url, GENEROUS_S, time.monotonic, lambda available, reason: came_and_went.append(available)
    )
    quota, of = RedisQuota(store, FakeClock()), tenant(requests=10, concurrent=4)
    watching = asyncio.create_task(store.keep_watch())
    async with AsyncExitStack() as held:
        await quota.renew()
        reservation = await held.enter_async_context(quota.reserve(call(of), expected()))
        assert [each.limit for each in reservation.standing] == [10, 4]
        server.stop()
        async with quota.reserve(call(of), expected()) as reservation:
            assert [each.limit for each in reservation.standing] == [10, 4], "of one gateway known"
        server.start()
        async with asyncio.timeout(30):
            while came_and_went[-1] is False:
                await asyncio.sleep(0.01)
        await quota.renew()
        left = await use(quota, of)
        assert left == {Kind.REQUESTS: 9, Kind.CONCURRENT: 2}, "what still runs is held again, though Redis forgot it"
    await quota.settle()
    assert (await use(quota, of))[Kind.CONCURRENT] == 3
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await store.aclose()


# --- the same as in memory --------------------------------------------------------------------------------------------

STEP = st.one_of(
    st.tuples(st.just("reserve"), st.integers(0, 12), st.integers(0, 18)),
    st.tuples(st.just("settle"), st.integers(0, 9), st.sampled_from([-1, 0, 50, 100])),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=25))
def test_redis_decides_as_memory_does(redis_url: str, steps: list[tuple[str, int, int]]) -> None:
    """Its clock cannot be stopped: limits are so small that nothing comes back meanwhile."""
    of = tenant(requests=12, tokens=30, concurrent=4, models={"demo": Limits(10, 24, 3)})

    async def play() -> None:
        async with shared_world(redis_url) as world:
            both: tuple[Quota, Quota] = (LocalQuota(FakeClock()), world.quota)
            running: list[tuple[AsyncExitStack, list[Reservation], Expected]] = []
            for step, first, second in steps:
                if step == "reserve":
                    what = expected(first, most=first + second)
                    stack = AsyncExitStack()
                    outcomes = [await _outcome(stack, quota, call(of), what) for quota in both]
                    assert _told(outcomes[0]) == _told(outcomes[1])
                    if isinstance(outcomes[0], Reservation):
                        running.append((stack, outcomes, what))
                elif running:
                    stack, reservations, what = running.pop(first % len(running))
                    for reservation in reservations:
                        reservation.used = None if second < 0 else what.most_tokens * second // 100
                    await stack.aclose()
                    await world.settled()

    asyncio.run(play())


async def _outcome(stack: AsyncExitStack, quota: Quota, of: Call, what: Expected) -> Any:
    try:
        return await stack.enter_async_context(quota.reserve(of, what))
    except RateLimited as error:
        return error


def _told(outcome: Any) -> tuple[Any, ...]:
    standing = [(each.kind, each.of_model, each.limit, each.remaining) for each in outcome.standing]
    return isinstance(outcome, Reservation), getattr(outcome, "code", None), standing
