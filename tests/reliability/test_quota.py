"""The limits of one gateway, in its memory."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RateLimited
from app.generation import Expected
from app.reliability import quota as module
from app.reliability.allowance import Levels, Scope
from app.reliability.quota import LocalQuota, Reservation
from app.tenant import Limits, Tenant
from tests.reliability.calls import call, expected, tenant
from tests.support.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def use(quota: LocalQuota, of: Tenant, what: Expected | None = None, used: int | None = 0) -> Reservation:
    async with quota.reserve(call(of), what or expected()) as reservation:
        reservation.used = used
    return reservation


async def test_a_tenant_without_limits_leaves_no_trace(clock: FakeClock) -> None:
    quota = LocalQuota(clock)
    for n in range(10):
        await use(quota, tenant(name=f"tenant-{n}"))
    assert len(quota) == 0


async def test_accounts_that_a_new_one_would_equal_are_dropped(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIDIED_FROM", 10)
    quota = LocalQuota(clock)
    async with AsyncExitStack() as running:
        for n in range(5):
            await running.enter_async_context(quota.reserve(call(tenant(1, name=f"running-{n}")), expected()))
        for n in range(100):
            clock.advance(60)
            await use(quota, tenant(1, name=f"tenant-{n}"), used=1)
            assert len(quota) <= 10
        for n in range(5):
            clock.advance(60)
            await use(quota, tenant(2, name=f"running-{n}"))


async def test_no_account_of_the_call_itself_is_dropped(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIDIED_FROM", 1)
    quota = LocalQuota(clock)
    twice = tenant(concurrent=1, models={"demo": Limits(concurrent=5)})
    async with quota.reserve(call(twice), expected()):
        assert quota.running == 2
        with pytest.raises(RateLimited):
            await use(quota, twice)
    assert quota.running == 0


async def test_an_account_that_owes_is_kept(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIDIED_FROM", 10)
    quota = LocalQuota(clock)
    await use(quota, tenant(tokens=10), used=1_000)
    for n in range(100):
        await use(quota, tenant(1, name=f"tenant-{n}"))
    with pytest.raises(RateLimited):
        await use(quota, tenant(tokens=10))


async def test_places_come_back_as_fast_as_requests_run(clock: FakeClock) -> None:
    quota, of = LocalQuota(clock), tenant(concurrent=4)
    for _ in range(100):
        async with quota.reserve(call(of), expected()):
            clock.advance(20)
    async with AsyncExitStack() as running:
        for _ in range(4):
            await running.enter_async_context(quota.reserve(call(of), expected()))
        with pytest.raises(RateLimited) as raised:
            await use(quota, of)
    assert raised.value.retry_after == pytest.approx(5, rel=0.01)


@dataclass
class History:
    """Reserves, settles and lets time pass as it is told, and writes down what was settled when."""

    limit: int
    clock: FakeClock = field(default_factory=lambda: FakeClock(0.0))
    running: list[tuple[Reservation, Expected]] = field(default_factory=list)
    settled: list[tuple[float, int]] = field(default_factory=list)
    looks: list[tuple[float, int, int]] = field(default_factory=list)
    """When, how much was reserved by those that ran, and how many were settled before."""
    largest: int = 0

    def __post_init__(self) -> None:
        self.quota = LocalQuota(self.clock)
        self.tenant = tenant(tokens=self.limit)

    async def reserve(self, reserved: int, beyond: int) -> None:
        what = Expected(reserved // 3, reserved - reserved // 3, reserved + beyond)
        try:
            reservation = await self.quota.reserve(call(self.tenant), what).__aenter__()
        except RateLimited:
            return
        self.running.append((reservation, what))
        self.largest = max(self.largest, what.most_tokens)

    async def settle(self, index: int, percent: int) -> None:
        if self.running:
            reservation, what = self.running.pop(index % len(self.running))
            reservation.used = what.most_tokens * percent // 100
            await reservation.__aexit__(None, None, None)
            self.settled.append((self.clock.now, reservation.used))

    def look(self) -> None:
        self.looks.append((self.clock.now, sum(what.tokens for _, what in self.running), len(self.settled)))


RESERVE = st.tuples(st.just("reserve"), st.integers(1, 80), st.integers(0, 300))
SETTLE = st.tuples(st.just("settle"), st.integers(0, 9), st.sampled_from([0, 10, 50, 90, 100]))
PASS = st.tuples(st.just("pass"), st.integers(0, 90), st.just(0))


@given(st.integers(1, 100), st.lists(st.one_of(RESERVE, SETTLE, PASS), max_size=40))
def test_overshoot_is_at_most_one_request(limit: int, steps: list[tuple[str, int, int]]) -> None:
    """In every window. What was reserved when it began had been paid for before it."""
    history = History(limit)

    async def play() -> None:
        for step, first, second in [*steps, *[("settle", 0, 100)] * 40]:
            history.look()
            if step == "pass":
                history.clock.advance(first)
            else:
                await (history.reserve if step == "reserve" else history.settle)(first, second)

    asyncio.run(play())
    for began, reserved, before in history.looks:
        used = 0
        for at, tokens in history.settled[before:]:
            used += tokens
            assert used <= limit + limit / 60 * (at - began) + history.largest + reserved + 1e-6


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60), st.booleans()), max_size=30))
def test_when_all_is_settled_the_level_says_what_was_used(steps: list[tuple[int, int, bool]]) -> None:
    clock = FakeClock()
    quota, of = LocalQuota(clock), Tenant("acme", limits=Limits(10**6, 10**6, 10**6))

    async def play() -> None:
        async with AsyncExitStack() as running:
            for tokens, used, nested in steps:
                reservation = quota.reserve(call(of), expected(tokens, most=60))
                if nested:
                    (await running.enter_async_context(reservation)).used = used
                else:
                    async with reservation as held:
                        held.used = used

    asyncio.run(play())
    levels = quota.account(of, Scope(None, of.limits)).levels()
    used = sum(each for _, each, _ in steps)
    assert levels == Levels(10**6 - len(steps), 10**6 - used, 0, 0)
