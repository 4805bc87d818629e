"""What every quota does, wherever it keeps its levels: one suite over each of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from app.errors import (
    ClusterError,
    Draining,
    EngineBusy,
    EngineFailed,
    EngineForgot,
    EngineOutOfReach,
    GatewayError,
    LargerThanLimit,
    NoReplica,
    QueueFull,
    RateLimited,
    StoreDown,
    TooManyConnections,
    WouldMissDeadline,
)
from app.generation import Expected
from app.reliability.quota import OUR_DOING, Quota
from app.tenant import Kind, Limits, Standing, Tenant
from app.wire.errors import ERRORS
from tests.reliability.calls import call, expected, tenant
from tests.reliability.worlds import LocalWorld, World, shared_world


@pytest.fixture(params=["local", "redis"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "local":
        yield LocalWorld()
    else:
        async with shared_world(request.getfixturevalue("redis_url")) as shared:
            yield shared


async def use(world: World, of: Tenant, what: Expected | None = None, used: int | None = 0) -> tuple[Standing, ...]:
    async with world.quota.reserve(call(of), what or expected()) as reservation:
        reservation.used = used
    await world.settled()
    return reservation.standing


async def refused(world: World, of: Tenant, what: Expected | None = None) -> RateLimited:
    with pytest.raises(RateLimited) as raised:
        await use(world, of, what)
    return raised.value


async def left(world: World, of: Tenant) -> dict[Kind, int]:
    """Looked up by a request that uses nothing and is not counted."""
    standing: tuple[Standing, ...] = ()
    with suppress(Draining):
        async with world.quota.reserve(call(of), expected(0)) as reservation:
            standing = reservation.standing
            raise Draining
    await world.settled()
    back = {Kind.REQUESTS: 1, Kind.TOKENS: 0, Kind.CONCURRENT: 1}
    return {each.kind: each.remaining + back[each.kind] for each in standing}


async def test_a_tenant_without_limits_may_do_anything_and_is_told_nothing(world: World) -> None:
    assert await use(world, tenant(), expected(10**9)) == ()
    assert await use(world, Tenant("empty", limits=Limits()), expected(10**9)) == ()


async def test_requests_are_counted_and_one_too_many_learns_when_to_come_back(world: World) -> None:
    of = tenant(requests=2)
    await use(world, of, used=5)
    await use(world, of, used=5)
    error = await refused(world, of)
    assert (error.code, error.message) == ("request_rate", "The limit of 2 requests per minute is reached.")
    assert error.retry_after == pytest.approx(30, abs=2)


async def test_who_waits_as_long_as_told_is_let_in(world: World) -> None:
    of = tenant(requests=2)
    for _ in range(2):
        await use(world, of, used=5)
    error = await refused(world, of)
    await world.advance((error.retry_after or 0) + 0.001)
    await use(world, of)


async def test_a_clock_that_jumps_back_neither_fills_nor_freezes_a_limit(world: World) -> None:
    of = tenant(requests=1)
    await use(world, of, used=5)
    await world.advance(-500)
    error = await refused(world, of)
    await world.advance((error.retry_after or 0) + 0.001)
    await use(world, of)


async def test_tokens_are_reserved_while_a_request_runs(world: World) -> None:
    of = tenant(tokens=100)
    async with world.quota.reserve(call(of), expected(70)) as reservation:
        (told,) = reservation.standing
        assert (told.kind, told.limit) == (Kind.TOKENS, 100)
        assert told.remaining == pytest.approx(30, abs=2)
        assert told.reset_s == pytest.approx(42, abs=2)
        error = await refused(world, of, expected(40))
        assert error.code == "token_quota"
        assert error.retry_after == pytest.approx(6, abs=2)
        await use(world, of, expected(30))


async def test_what_was_not_used_comes_back_and_what_was_used_beyond_is_owed(world: World) -> None:
    of = tenant(tokens=1_000)
    await use(world, of, expected(700, most=900), used=100)
    assert (await left(world, of))[Kind.TOKENS] == pytest.approx(900, abs=30)
    await use(world, of, expected(800, most=2_000), used=1_500)
    error = await refused(world, of, expected(1))
    assert error.retry_after == pytest.approx(36, abs=2)


async def test_if_nobody_knows_what_was_used_the_reservation_stays_taken(world: World) -> None:
    of = tenant(tokens=1_000)
    await use(world, of, expected(400), used=None)
    assert (await left(world, of))[Kind.TOKENS] == pytest.approx(600, abs=30)


async def test_so_many_run_at_once_and_no_more(world: World) -> None:
    of = tenant(concurrent=2)
    async with world.quota.reserve(call(of), expected()), world.quota.reserve(call(of), expected()) as second:
        assert [(each.kind, each.remaining) for each in second.standing] == [(Kind.CONCURRENT, 0)]
        error = await refused(world, of)
        assert (error.code, error.message) == ("concurrency", "The limit of 2 requests at once is reached.")
        assert error.retry_after is not None
        assert error.retry_after > 0
    await world.settled()
    await use(world, of)


async def test_a_refusal_by_one_limit_takes_nothing_from_the_others(world: World) -> None:
    of = tenant(requests=10, tokens=1_000, concurrent=1)
    async with world.quota.reserve(call(of), expected(100)) as reservation:
        for _ in range(5):
            assert (await refused(world, of, expected(100))).code == "concurrency"
        reservation.used = 100
    await world.settled()
    after = await left(world, of)
    assert after == {Kind.REQUESTS: 9, Kind.TOKENS: pytest.approx(900, abs=30), Kind.CONCURRENT: 1}


async def test_a_model_has_limits_beside_those_of_its_tenant(world: World) -> None:
    of = tenant(requests=10, models={"demo": Limits(requests_per_minute=1)})
    standing = await use(world, of, used=1)
    assert [(each.of_model, each.limit, each.remaining) for each in standing] == [(False, 10, 9), (True, 1, 0)]
    error = await refused(world, of)
    assert error.message == "The limit of 1 request per minute of the model 'demo' is reached."
    async with world.quota.reserve(call(of, model="other"), expected()) as reservation:
        assert [(each.of_model, each.remaining) for each in reservation.standing] == [(False, 8)]


async def test_limits_of_a_model_alone_hold_too(world: World) -> None:
    of = tenant(models={"demo": Limits(requests_per_minute=1)})
    await use(world, of, used=1)
    await refused(world, of)


async def test_tenants_do_not_touch_each_other(world: World) -> None:
    await use(world, tenant(requests=1), used=1)
    await refused(world, tenant(requests=1))
    await use(world, tenant(requests=1, name="other"))


async def test_the_limit_that_takes_longest_is_named_and_all_are_told(world: World) -> None:
    of = tenant(requests=1, tokens=1_000)
    await use(world, of, expected(600), used=600)
    error = await refused(world, of, expected(500))
    assert error.code == "request_rate"
    assert [(each.kind, each.remaining, each.wait_s is not None) for each in error.standing] == [
        (Kind.REQUESTS, 0, True),
        (Kind.TOKENS, pytest.approx(400, abs=30), True),
    ]


async def test_what_never_fits_is_refused_for_good(world: World) -> None:
    of = tenant(requests=10, tokens=100)
    with pytest.raises(LargerThanLimit) as raised:
        await use(world, of, expected(101))
    assert (raised.value.retry_after, raised.value.should_retry) == (None, False)
    assert [each.remaining for each in raised.value.standing] == [10, 100]
    await use(world, of, expected(100))


OURS: list[GatewayError] = [
    Draining(),
    EngineBusy(),
    EngineForgot(),
    EngineOutOfReach(),
    NoReplica(),
    QueueFull(),
    StoreDown(),
    WouldMissDeadline(),
]


def test_our_doing_is_what_is_answered_with_503() -> None:
    """Of calls: what operators are refused is on nobody's account, nor is who has not asked anything yet."""
    calls = {kind for kind in ERRORS if not issubclass(kind, ClusterError)} - {TooManyConnections}
    assert set(OUR_DOING) == {kind for kind in calls if ERRORS[kind].status == 503}
    assert {type(each) for each in OURS} == set(OUR_DOING)


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
async def test_what_we_could_not_serve_is_not_counted_at_all(world: World, error: GatewayError) -> None:
    of = tenant(requests=10, tokens=100, concurrent=1)
    with pytest.raises(type(error)):
        async with world.quota.reserve(call(of), expected(50)):
            raise error
    await world.settled()
    assert await left(world, of) == {Kind.REQUESTS: 10, Kind.TOKENS: 100, Kind.CONCURRENT: 1}


@pytest.mark.parametrize("error", [EngineFailed(), asyncio.CancelledError()], ids=["failed", "hung up"])
async def test_what_failed_counts_as_a_request_and_gives_back_tokens_and_place(
    world: World, error: BaseException
) -> None:
    of = tenant(requests=10, tokens=100, concurrent=1)
    with pytest.raises(type(error)):
        async with world.quota.reserve(call(of), expected(50)):
            raise error
    await world.settled()
    assert await left(world, of) == {Kind.REQUESTS: 9, Kind.TOKENS: 100, Kind.CONCURRENT: 1}


async def test_what_an_engine_did_is_counted_even_if_it_was_busy_in_the_end(world: World) -> None:
    of = tenant(requests=10, tokens=1_000)
    with suppress(EngineBusy):
        async with world.quota.reserve(call(of), expected(50)) as reservation:
            reservation.used = 80
            raise EngineBusy
    await world.settled()
    assert await left(world, of) == {Kind.REQUESTS: 9, Kind.TOKENS: pytest.approx(920, abs=30)}


async def test_what_others_may_still_use_is_covered_or_nobody_more_is_let_in(world: World) -> None:
    of = tenant(tokens=1_000)
    async with world.quota.reserve(call(of), expected(100, most=800)):  # 900 left, 700 of them may be needed
        async with world.quota.reserve(call(of), expected(250, most=250)):
            error = await refused(world, of, expected(1))
            assert error.code == "token_quota"
            assert error.retry_after == pytest.approx(3, abs=2)
        await world.settled()
        await use(world, of, expected(1))


async def test_a_first_request_may_be_larger_than_what_is_left_for_its_most(world: World) -> None:
    of = tenant(tokens=1_000)
    async with world.quota.reserve(call(of), expected(100, most=100_000)):
        error = await refused(world, of, expected(1))
        assert error.retry_after is not None
        assert error.retry_after > 0
    await world.settled()
    await use(world, of, expected(1))


async def test_what_uses_no_tokens_is_not_stopped_by_a_debt_of_tokens(world: World) -> None:
    of = tenant(tokens=100)
    await use(world, of, expected(100), used=10_000)
    await refused(world, of, expected(1))
    await use(world, of, expected(0))


@pytest.mark.parametrize(
    ("before", "after", "remains"), [(Limits(10), Limits(100), 50), (Limits(10), Limits(4), 2), (Limits(10), None, 0)]
)
async def test_limits_may_change_while_requests_run(
    world: World, before: Limits, after: Limits | None, remains: int
) -> None:
    for _ in range(5):
        await use(world, Tenant("acme", limits=before), used=1)
    if after is None:
        assert await use(world, tenant()) == ()
    else:
        (told,) = await use(world, Tenant("acme", limits=after), used=1)
        assert told.remaining == pytest.approx(remains - 1, abs=1)


async def test_fewer_places_count_those_that_run(world: World) -> None:
    async with world.quota.reserve(call(tenant(concurrent=5)), expected()):
        await refused(world, tenant(concurrent=1))
        await use(world, tenant(concurrent=2))
    await world.settled()
    await use(world, tenant(concurrent=1))


async def test_a_limit_that_is_new_begins_full(world: World) -> None:
    await use(world, tenant(requests=10), used=500)
    standing = await use(world, tenant(requests=10, tokens=100), expected(40), used=40)
    assert [each.remaining for each in standing] == [8, pytest.approx(60, abs=2)]


async def test_of_many_at_the_same_moment_exactly_as_many_are_let_in_as_the_limit_says(world: World) -> None:
    of = tenant(requests=7, tokens=10_000)
    async with AsyncExitStack() as running:
        entered = await asyncio.gather(*[_enter(running, world.quota, of) for _ in range(20)])
        assert sum(entered) == 7
    await world.settled()
    error = await refused(world, of)
    assert [each.remaining for each in error.standing] == [0, 10_000]


async def _enter(running: AsyncExitStack, quota: Quota, of: Tenant) -> bool:
    try:
        await running.enter_async_context(quota.reserve(call(of), expected(100)))
    except RateLimited:
        return False
    return True


async def test_a_place_comes_back_when_its_request_is_cancelled(world: World) -> None:
    of = tenant(concurrent=1)
    inside = asyncio.Event()

    async def stay() -> None:
        async with world.quota.reserve(call(of), expected()):
            inside.set()
            await asyncio.Event().wait()

    staying = asyncio.create_task(stay())
    await inside.wait()
    await refused(world, of)
    staying.cancel()
    await asyncio.gather(staying, return_exceptions=True)
    await world.settled()
    await use(world, of)
