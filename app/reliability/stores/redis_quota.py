"""The limits of several gateways together, held in Redis.

Whoever holds something there holds it by a lease, which its gateway renews: what a killed gateway held comes back when
its leases end. A request is let in by one round trip; what it gives back goes out later, so that no way out waits for
Redis. While Redis is away each gateway lets in its part of the limits.
"""

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from types import TracebackType
from typing import NamedTuple, TypeVar

import msgspec

from app.clock import Clock
from app.errors import DeadlinePassed
from app.generation import Call, Expected
from app.reliability.allowance import Levels, Scope, larger, only_places_lack, refusal, scopes_of, standings
from app.reliability.quota import LocalQuota, Reservation, Turnover, given_back
from app.reliability.stores.quota_scripts import RENEW, RESERVE, SETTLE
from app.reliability.stores.redis import PREFIX, Part, SharedStore, StoreRefused, StoreUnavailable
from app.tenant import Limits, Standing

LEASE_S = 15.0
RENEWED_S = 5.0
BATCH = 200
"""Settlements, or renewals, that are sent to Redis at once."""
UNSENT = 100_000
"""Settlements that are kept while Redis is away; of the oldest beyond, the leases end by themselves."""
ON_ITS_WAY_S = 0.05
"""Who has read an answer may ask again before its place is back in Redis: so long may that take."""
COUNTS = 3
"""So many renewals a lease lasts, and so often in a row there must be fewer gateways until there are: a Redis that has
just forgotten everything knows none until each has said again that it lives."""
UNKNOWN_SHARE = 0.5
"""Of each limit, for a gateway that has never learned how many there are."""

_KEYS = f"{PREFIX}{{quota}}:"
_GATEWAYS = f"{_KEYS}gateways"
_LEASE_US = int(LEASE_S * 1e6)

T = TypeVar("T")


class _Lease(NamedTuple):
    id: str
    keys: list[str]
    """`levels` and `running` of each scope."""


class _Settlement(NamedTuple):
    lease: _Lease
    requests_back: int
    tokens_back: int


class RedisQuota:
    def __init__(self, store: SharedStore, clock: Clock) -> None:
        self.gateways: int | None = None
        """How many share the limits, as far as is known."""
        self._store = store
        self.clock = clock
        self._name = secrets.token_hex(6)
        self._numbers = itertools.count()
        self.turnover = Turnover()
        self._local = LocalQuota(clock)
        self.held: dict[str, _Lease] = {}
        self._counts: deque[int] = deque(maxlen=COUNTS)
        self._unsent: list[_Settlement] = []
        self._news = asyncio.Event()
        self._longest_s = 2 * store.longest_s + ON_ITS_WAY_S
        """Asking takes no longer, whatever happens: who has more time needs no timer for it."""

    def reserve(self, call: Call, expected: Expected) -> AbstractAsyncContextManager[Reservation]:
        scopes = scopes_of(call)
        return _Held(self, call, expected, scopes) if scopes else Reservation()

    async def run(self) -> None:
        """Sends what is given back, and renews what is held. Runs as long as the gateway does.

        At once, because whoever has got an answer may ask again at once, here or elsewhere; what ends during one round
        trip goes with the next.
        """
        renew_at, due = self.clock(), True
        try:
            while True:
                await self.settle()
                if due or self.clock() >= renew_at:
                    await self.renew()
                    renew_at, due = self.clock() + RENEWED_S, False
                try:
                    async with asyncio.timeout(renew_at - self.clock()):
                        await self._news.wait()
                except TimeoutError:
                    due = True  # also where a rounding has the clock a little behind the loop's
                self._news.clear()
        finally:
            await self.settle()

    async def settle(self) -> None:
        """Sends all that was given back, or keeps it for later."""
        while self._unsent:
            batch, self._unsent = self._unsent[:BATCH], self._unsent[BATCH:]
            try:
                await _sent(self._settle, batch)
            except BaseException as error:
                self._unsent = [*batch, *self._unsent]  # whether it was done is not known: twice does no harm
                if not isinstance(error, StoreUnavailable):
                    raise
                return

    @property
    def running(self) -> int:
        """Reservations that this gateway holds, in Redis or by itself."""
        return len(self.held) + self._local.running

    async def renew(self) -> None:
        """Says that this gateway lives, and with it all that it holds."""
        held = list(self.held.values())
        with suppress(StoreUnavailable):  # then the next round says it, renews, or takes up again
            self._counts.append(await self._renew([]))
            self.gateways = max(self._counts)
            for first in range(0, len(held), BATCH):
                await _sent(self._renew, held[first : first + BATCH])

    async def take(self, call: Call, expected: Expected, scopes: list[Scope]) -> tuple[_Lease, tuple[Standing, ...]]:
        """A lease, and how each limit stands with it. Raises `StoreUnavailable`; or why the call is not let in."""
        lease = self._lease(call, expected, scopes)
        back = partial(self.give_back, lease, 1, expected.tokens)
        sent = self._store.available
        left_s = call.expires_at - self.clock()
        try:
            if left_s > self._longest_s:
                granted, stand = await self._answered(lease, expected, scopes, back)
            else:
                async with asyncio.timeout(left_s):
                    granted, stand = await self._answered(lease, expected, scopes, back)
        except StoreUnavailable:
            if sent:  # it may have been done all the same
                back()
            raise
        except TimeoutError:  # a time limit of the store's own is `StoreUnavailable`
            raise DeadlinePassed from None
        if not granted:
            raise refusal(call, expected, stand, self.turnover.seconds)
        self.held[lease.id] = lease
        return lease, sum((standings(scope, levels.less(expected)) for scope, levels in stand), ())

    def give_back(self, lease: _Lease, requests: int, tokens: int) -> None:
        self.held.pop(lease.id, None)
        self._unsent.append(_Settlement(lease, requests, tokens))
        del self._unsent[:-UNSENT]
        self._news.set()

    def by_itself(
        self, call: Call, expected: Expected, scopes: list[Scope]
    ) -> AbstractAsyncContextManager[Reservation]:
        """While Redis is away."""
        return self._local.reserve(*self._part_of(call, expected, scopes))

    async def _settle(self, batch: Sequence[_Settlement]) -> None:
        keys: list[str] = []
        args: list[Part] = [_LEASE_US]
        for lease, requests_back, tokens_back in batch:
            keys += lease.keys
            args += [lease.id, requests_back, tokens_back] * (len(lease.keys) // 2)
        await self._store.run(SETTLE, keys, args)

    async def _renew(self, leases: Sequence[_Lease]) -> int:
        keys = [key for lease in leases for key in lease.keys]
        ids: list[Part] = [lease.id for lease in leases for _ in range(len(lease.keys) // 2)]
        return int(await self._store.run(RENEW, [_GATEWAYS, *keys], [self._name, _LEASE_US, *ids]))

    async def _answered(
        self, lease: _Lease, expected: Expected, scopes: list[Scope], back: Callable[[], None]
    ) -> tuple[bool, list[tuple[Scope, Levels]]]:
        """`back`: for a lease that was granted when nobody waited for it any more. It must not overtake that."""
        granted, stand = await self._asked(lease, expected, scopes, back)
        if not granted and only_places_lack(expected, stand):
            await asyncio.sleep(ON_ITS_WAY_S)
            granted, stand = await self._asked(lease, expected, scopes, back)
        return granted, stand

    async def _asked(
        self, lease: _Lease, expected: Expected, scopes: list[Scope], back: Callable[[], None]
    ) -> tuple[bool, list[tuple[Scope, Levels]]]:
        """Whether it was granted, and how the limits stood before."""
        answer = await self._store.run(RESERVE, lease.keys, _parts(lease, expected, scopes), back)
        return bool(answer[0]), list(zip(scopes, _levels(answer, scopes), strict=True))

    def _lease(self, call: Call, expected: Expected, scopes: list[Scope]) -> _Lease:
        exposure = expected.most_tokens - expected.tokens
        keys: list[str] = []
        for scope in scopes:
            name = call.tenant.name if scope.model is None else f"{call.tenant.name}:{scope.model}"
            keys += (f"{_KEYS}levels:{name}", f"{_KEYS}running:{name}")
        return _Lease(f"{self._name}-{next(self._numbers)}:{exposure}", keys)

    def _part_of(self, call: Call, expected: Expected, scopes: list[Scope]) -> tuple[Call, Expected]:
        """The call as it is without Redis: of limits that are so much smaller. What fits into the whole limit need not
        fit into its part: it waits for a full one, and the rest is owed."""
        share = 1 / self.gateways if self.gateways else UNKNOWN_SHARE
        tenant = msgspec.structs.replace(
            call.tenant,
            limits=_part(call.tenant.limits, share),
            model_limits={scope.model: _part(scope.limits, share) for scope in scopes if scope.model is not None},
        )
        if not any(larger(scope.limits, expected) for scope in scopes):
            parts = [limit for scope in scopes if (limit := _part(scope.limits, share).tokens_per_minute) is not None]
            expected = _at_most(expected, min(parts, default=expected.tokens))
        return msgspec.structs.replace(call, tenant=tenant), expected


class _Held:
    """By a lease in Redis; or, while Redis is away, of this gateway's own part."""

    def __init__(self, quota: RedisQuota, call: Call, expected: Expected, scopes: list[Scope]) -> None:
        self._quota = quota
        self._call = call
        self._expected = expected
        self._scopes = scopes
        self._reservation = Reservation()
        self._lease: _Lease | None = None
        self._own: AbstractAsyncContextManager[Reservation] | None = None

    async def __aenter__(self) -> Reservation:
        quota = self._quota
        try:
            self._lease, self._reservation.standing = await quota.take(self._call, self._expected, self._scopes)
        except StoreUnavailable:
            self._own = quota.by_itself(self._call, self._expected, self._scopes)
            return await self._own.__aenter__()
        self._began = quota.clock()
        return self._reservation

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        quota = self._quota
        if self._own is not None:
            await self._own.__aexit__(kind, error, tb)
        elif self._lease is not None:
            quota.give_back(self._lease, *given_back(self._reservation, self._expected, error))
            quota.turnover.saw(quota.clock() - self._began)


async def _sent(send: Callable[[Sequence[T]], Awaitable[object]], batch: Sequence[T]) -> None:
    """All but those that Redis refuses, as when somebody else has used a tenant's key: others are not to suffer for
    it."""
    try:
        await send(batch)
    except StoreRefused:
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]) if half else ():
            await _sent(send, part)


def _parts(lease: _Lease, expected: Expected, scopes: list[Scope]) -> list[Part]:
    may_fit = not any(larger(scope.limits, expected) for scope in scopes)
    asked: list[Part] = [
        lease.id,
        _LEASE_US,
        expected.tokens,
        expected.most_tokens - expected.tokens,
        int(may_fit),
    ]
    for scope in scopes:
        limits = scope.limits
        asked += [
            -1 if limit is None else limit
            for limit in (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent)
        ]
    return asked


def _levels(answer: list[bytes], scopes: list[Scope]) -> list[Levels]:
    numbers = [float(each) for each in answer[1:]]
    return [
        Levels(numbers[at], numbers[at + 1], int(numbers[at + 2]), int(numbers[at + 3]))
        for at in range(0, 4 * len(scopes), 4)
    ]


def _part(limits: Limits, share: float) -> Limits:
    """Never nothing: a tenant may always do a little."""

    def of(limit: int | None) -> int | None:
        return limit if limit is None else max(1, int(limit * share))

    return Limits(of(limits.requests_per_minute), of(limits.tokens_per_minute), of(limits.concurrent))


def _at_most(expected: Expected, tokens: int) -> Expected:
    if expected.tokens <= tokens:
        return expected
    prompt = min(expected.prompt_tokens, tokens)
    return Expected(prompt, tokens - prompt, expected.most_tokens)
