"""What tenants may use: requests a minute, tokens a minute, and how many at once; in all, and of single models.

Tokens are reserved before a request is made, by what is expected of it, and settled on every way out by what it used.
"""

from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Protocol, Self

from app.clock import Clock
from app.errors import (
    Draining,
    EngineBusy,
    EngineForgot,
    EngineOutOfReach,
    NoReplica,
    QueueFull,
    StoreDown,
    WouldMissDeadline,
)
from app.generation import Call, Expected
from app.reliability.account import Account
from app.reliability.allowance import Scope, fits, refusal, scopes_of, standings
from app.tenant import Standing, Tenant

OUR_DOING = (
    Draining,
    EngineBusy,
    EngineForgot,
    EngineOutOfReach,
    NoReplica,
    QueueFull,
    StoreDown,
    WouldMissDeadline,
)
"""After these nothing was done for the tenant, and not by the tenant's fault: not even the request is counted."""

TIDIED_FROM = 1_024
"""Accounts; with fewer it is not worth looking for those that could go."""


class Reservation:
    """A request's part of its tenant's limits, for as long as the block lasts.

    This is the one of a tenant without limits: it holds nothing.
    """

    standing: tuple[Standing, ...] = ()
    """How each limit stands, this request counted."""
    used: int | None = 0
    """Tokens, to be said before the block is left; `None` if an engine worked and has not told: then what was reserved
    stays taken."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Settles, at once and without waiting for anything."""


class Quota(Protocol):
    def reserve(self, call: Call, expected: Expected) -> AbstractAsyncContextManager[Reservation]:
        """All limits or none: raises `RateLimited`, with when to try again, or `LargerThanLimit`."""
        ...


class Turnover:
    """How long requests run, as a rule: what running requests hold comes back by that."""

    def __init__(self) -> None:
        self.seconds = 1.0

    def saw(self, seconds: float) -> None:
        self.seconds += (max(0.0, seconds) - self.seconds) * 0.1


def given_back(reservation: Reservation, expected: Expected, error: BaseException | None) -> tuple[int, int]:
    """Requests and tokens that were taken and not used; of tokens it may be less than none."""
    used = reservation.used
    if used is None:
        return 0, 0
    return int(used == 0 and isinstance(error, OUR_DOING)), expected.tokens - used


class LocalQuota:
    """The limits of one gateway, in its memory."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.turnover = Turnover()
        self._accounts: dict[tuple[str, str | None], Account] = {}
        self._tidy_at = TIDIED_FROM

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def running(self) -> int:
        """Reservations that are held."""
        return sum(account.running for account in self._accounts.values())

    def reserve(self, call: Call, expected: Expected) -> AbstractAsyncContextManager[Reservation]:
        scopes = scopes_of(call)
        if not scopes:
            return Reservation()
        self._tidy()  # before this call has an account: its own, new and full, must stay
        return _Held(self, call, expected, scopes)

    def account(self, tenant: Tenant, scope: Scope) -> Account:
        """As it is, or new and full; within the tenant's limits of this moment."""
        key = (tenant.name, scope.model)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(scope.limits, self.clock)
        elif account.limits is not scope.limits and account.limits != scope.limits:
            account.follow(scope.limits)
        return account

    def _tidy(self) -> None:
        if len(self._accounts) >= self._tidy_at:
            self._accounts = {key: each for key, each in self._accounts.items() if not each.forgettable()}
            self._tidy_at = max(TIDIED_FROM, 2 * len(self._accounts))


class _Held(Reservation):
    def __init__(self, quota: LocalQuota, call: Call, expected: Expected, scopes: list[Scope]) -> None:
        self._quota = quota
        self._call = call
        self._expected = expected
        self._scopes = scopes
        self._accounts: list[Account] = []

    async def __aenter__(self) -> Self:
        """Asks all limits before it takes from any, and awaits nothing in between."""
        quota, expected, stand = self._quota, self._expected, []
        for scope in self._scopes:
            account = quota.account(self._call.tenant, scope)
            self._accounts.append(account)
            stand.append((scope, account.levels()))
        for scope, levels in stand:
            if not fits(scope.limits, levels, expected):  # what is larger than a limit fits into no level of it
                raise refusal(self._call, expected, stand, quota.turnover.seconds)
        for account in self._accounts:
            account.take(expected)
        for scope, levels in stand:
            self.standing += standings(scope, levels.less(expected))
        self._began = quota.clock()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        requests_back, tokens_back = given_back(self, self._expected, error)
        for account in self._accounts:
            account.settle(self._expected, requests_back, tokens_back)
        self._quota.turnover.saw(self._quota.clock() - self._began)
