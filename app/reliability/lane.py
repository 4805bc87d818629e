"""One priority class of a queue: whose turn it is among the tenants that wait in it.

The Virtual Token Counter (https://arxiv.org/abs/2401.00588): a tenant's counter holds the cost it was served, by its
weight, and the smallest counter is next. Who comes back after nothing of theirs waited is lifted to the smallest of
those that wait: time spent away earns nothing, not even while one long request runs on. Each class counts for itself;
otherwise one request left in a class that seldom gets a turn would save up credit for the others.

While two tenants have someone waiting without a break, what they are served differs by at most
`2 * largest cost / weight`, in costs as expected. Settling moves that by what is corrected, and by no more.

Lists are kept sorted by bisection. Moving the tail of one is a `memmove`: at ten thousand entries still cheaper than a
few comparisons in Python, and unlike in a heap whoever leaves is gone at once.
"""

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from app.tenant import Priority, Tenant


class Waiting(Protocol):
    """What the queue needs of who waits."""

    @property
    def tenant(self) -> Tenant: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def cost(self) -> float: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def expires_at(self) -> float: ...


W = TypeVar("W", bound=Waiting)

HIGHEST = 2.0**30
"""Counters are lowered together when they come here, long before a float could lose a small cost."""
FEW = 64
"""So many tenants are remembered without asking whether they may be forgotten."""


@dataclass(slots=True, eq=False)
class Place(Generic[W]):
    waiter: W
    since: float
    due: tuple[float, int]
    """Both negative, so that the next one sorts last, where it is taken cheaply: deadline, then who came first."""
    lane: "Lane[W]"


@dataclass(slots=True, eq=False)
class Account(Generic[W]):
    """What one tenant was served in this class, and who of it waits."""

    name: str
    served: float
    """Cost by weight. Only the differences between accounts mean anything."""
    turn: int = 0
    """When it was served last: of equal ones the one is next for which that is longest ago."""
    waiting: list[Place[W]] = field(default_factory=list)
    backlog: float = 0.0
    """Cost by weight of those that wait."""
    running: int = 0
    rank: tuple[float, int, str] = (0.0, 0, "")

    def ahead_of(self, due: float) -> int:
        """How many wait already that are not due later."""
        return len(self.waiting) - bisect_left(self.waiting, (-due, -math.inf), key=_DUE)


_DUE = attrgetter("due")
_RANK = attrgetter("rank")


class Lane(Generic[W]):
    def __init__(self) -> None:
        self._accounts: dict[str, Account[W]] = {}
        self._order: list[Account[W]] = []
        """Those of whom someone waits, the next one first."""
        self._length = 0
        self._running = 0
        self._turn = 0
        self._reached = 0.0
        """The largest counter that had a turn: where they begin that come when nobody waits."""
        self._remembered = FEW

    def __len__(self) -> int:
        return self._length

    def head(self) -> Place[W] | None:
        return self._order[0].waiting[-1] if self._order else None

    def push(self, place: Place[W]) -> None:
        tenant = place.waiter.tenant
        account = self._arriving(tenant)
        insort(account.waiting, place, key=_DUE)
        account.backlog += place.waiter.cost / tenant.weight
        self._length += 1
        if len(account.waiting) == 1:
            self._enrol(account)

    def remove(self, place: Place[W]) -> None:
        self._take(place)
        self._rest()

    def pop(self, head: Place[W]) -> None:
        self._serve(self._take(head), head.waiter)

    def charge(self, waiter: W) -> None:
        self._serve(self._arriving(waiter.tenant), waiter)

    def settle(self, tenant: Tenant, expected: float, used: float) -> None:
        account = self._accounts[tenant.name]
        account.running -= 1
        self._running -= 1
        self._advance(account, (used - expected) / tenant.weight)
        self._rest()

    def ahead_of(self, waiter: W) -> int:
        """Exact where a tenant's requests all cost the same; otherwise by their mean."""
        own = self._accounts.get(waiter.tenant.name) or Account(waiter.tenant.name, -math.inf)
        return self._ahead(own, own.ahead_of(waiter.expires_at))

    def ahead_of_place(self, place: Place[W]) -> int:
        """The same for one that waits already."""
        own = self._accounts[place.waiter.tenant.name]
        return self._ahead(own, len(own.waiting) - 1 - bisect_left(own.waiting, place.due, key=_DUE))

    @property
    def tenants(self) -> int:
        """Of whom someone waits."""
        return len(self._order)

    def _ahead(self, own: Account[W], ahead: int) -> int:
        """`ahead`: of its own tenant."""
        now = own.served if own.waiting else max(own.served, self._least())
        then = now + (ahead * own.backlog / len(own.waiting) if ahead else 0.0)
        for rival in self._order:
            if rival.served > then:
                break
            if rival is own:
                continue
            waiting = len(rival.waiting)
            turns = min(waiting, (then - rival.served) * waiting / rival.backlog) if rival.backlog else waiting
            # At a tie the one is first that came to it first: whose counter was larger, or whose turn is longer ago.
            before = rival.served > now or (rival.served == now and rival.rank < (now, own.turn, own.name))
            ahead += min(waiting, int(turns) + 1) if before else math.ceil(turns)
        return ahead

    def yielding_to(self, waiter: W) -> Iterator[Place[W]]:
        """Whose places a newcomer gets when none is left, until its own tenant would hold as many.

        So places go round by weight, as turns do: a tenant that fills the line cannot shut out the others.
        """
        own = self._accounts.get(waiter.tenant.name)
        return self.yielding((1 + (len(own.waiting) if own is not None else 0)) / waiter.tenant.weight)

    def yielding(self, least: float = 0.0) -> Iterator[Place[W]]:
        """Whose turn would come last, one after the other, each of the tenant that then holds the most places for its
        weight; until that is no more than `least`."""
        gone: Counter[str] = Counter()

        def held(account: Account[W]) -> float:
            return (len(account.waiting) - gone[account.name]) / account.waiting[0].waiter.tenant.weight

        while self._order and held(largest := max(self._order, key=held)) > least:
            yield largest.waiting[gone[largest.name]]
            gone[largest.name] += 1

    def _arriving(self, tenant: Tenant) -> Account[W]:
        """Its account, lifted if it has been away."""
        account = self._accounts.get(tenant.name)
        if account is None:
            if len(self._accounts) >= self._remembered:
                self._tidy()
            account = self._accounts[tenant.name] = Account(tenant.name, self._least())
        elif not account.waiting:
            account.served = max(account.served, self._least())
        return account

    def _least(self) -> float:
        return self._order[0].served if self._order else self._reached

    def _take(self, place: Place[W]) -> Account[W]:
        tenant = place.waiter.tenant
        account = self._accounts[tenant.name]
        del account.waiting[bisect_left(account.waiting, place.due, key=_DUE)]
        self._length -= 1
        if account.waiting:
            account.backlog = max(0.0, account.backlog - place.waiter.cost / tenant.weight)
        else:
            account.backlog = 0.0
            self._strike(account)
        return account

    def _serve(self, account: Account[W], waiter: W) -> None:
        self._reached = max(self._reached, account.served)
        self._turn += 1
        account.turn = self._turn
        account.running += 1
        self._running += 1
        self._advance(account, waiter.cost / waiter.tenant.weight)
        if self._reached > HIGHEST:
            self._tidy()

    def _advance(self, account: Account[W], cost: float) -> None:
        if not account.waiting:
            account.served += cost
            return
        self._strike(account)
        account.served += cost
        self._enrol(account)

    def _enrol(self, account: Account[W]) -> None:
        account.rank = (account.served, account.turn, account.name)
        insort(self._order, account, key=_RANK)

    def _strike(self, account: Account[W]) -> None:
        del self._order[bisect_left(self._order, account.rank, key=_RANK)]

    def _rest(self) -> None:
        """When all is done, nobody is owed anything."""
        if not self._running and not self._length:
            self._accounts.clear()
            self._reached = 0.0

    def _tidy(self) -> None:
        """Forget who would be lifted on coming back, and lower the others together."""
        least = self._least()
        self._accounts = {
            name: account
            for name, account in self._accounts.items()
            if account.running or account.waiting or account.served > least
        }
        self._remembered = max(FEW, 2 * len(self._accounts))
        waiting, self._order = self._order, []
        for account in self._accounts.values():
            account.served -= self._reached
        for account in waiting:
            self._enrol(account)
        self._reached = 0.0
