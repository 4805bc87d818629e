"""Who is next, who has room, and what is owed to whom."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, cycle, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.reliability import lane
from app.reliability.fair_queue import MOST_YIELDING, FairQueue, Fifo, Queue, Turn
from app.tenant import Priority, Tenant
from tests.support.clock import FakeClock

INTERACTIVE, NORMAL, BATCH = Priority
A, B, C = (Tenant(name) for name in "abc")


@dataclass(eq=False)
class Waiter:
    tenant: Tenant = A
    cost: float = 1.0
    priority: Priority = NORMAL
    prompt_tokens: int = 1
    expires_at: float = math.inf

    def __repr__(self) -> str:
        return f"{self.tenant.name}{self.cost:g}"


def queue(
    clock: FakeClock | None = None, places: int = 10_000, token_places: int = 10**9, promote_after_s: float = 60
) -> FairQueue[Waiter]:
    return FairQueue(places, token_places, promote_after_s, clock or FakeClock())


def filled(waiters: Iterable[Waiter]) -> FairQueue[Waiter]:
    made = queue()
    for waiter in waiters:
        made.push(waiter)
    return made


def popped(of: Queue[Waiter], most: int = 10_000) -> list[Waiter]:
    found: list[Waiter] = []
    while len(found) < most and (waiter := of.pop()) is not None:
        found.append(waiter)
    return found


def names(waiters: Iterable[Waiter]) -> str:
    return "".join(waiter.tenant.name for waiter in waiters)


# --- order --------------------------------------------------------------------------------------------------------


def test_an_empty_queue_has_nobody() -> None:
    empty = queue()
    assert (empty.pop(), len(empty), empty.tokens, empty.oldest_since()) == (None, 0, 0, None)


def test_the_class_goes_before_everything_else() -> None:
    late = Waiter(A, 100, INTERACTIVE)
    waiters = [Waiter(B, 1, BATCH, expires_at=1), Waiter(B, 1, NORMAL, expires_at=2), late]
    fair = filled(waiters)
    fair.charge(Waiter(A, 10_000, INTERACTIVE))
    assert popped(fair) == waiters[::-1]


def test_tenants_take_turns_by_what_they_were_served() -> None:
    fair = filled([*(Waiter(A, 1) for _ in range(6)), *(Waiter(B, 2) for _ in range(3))])
    assert names(popped(fair)) == "ababaabaa"


def test_weight_is_the_share() -> None:
    heavy, light = Tenant("h", weight=3), Tenant("l", weight=1)
    fair = filled(Waiter(tenant, 10) for tenant in (heavy, light) for _ in range(40))
    assert Counter(names(popped(fair, most=40))) == {"h": 30, "l": 10}


def test_within_a_tenant_the_earliest_deadline_is_next_and_of_equal_ones_who_came_first() -> None:
    waiters = [Waiter(expires_at=at) for at in (30, 10, 20, 10, 30)]
    assert popped(filled(waiters)) == [waiters[i] for i in (1, 3, 2, 0, 4)]


def test_one_tenant_alone_is_served_at_once_whatever_it_was_served_before() -> None:
    fair = queue()
    for _ in range(100):
        fair.charge(Waiter(A, 1_000))
    only = Waiter(A)
    fair.push(only)
    assert fair.pop() is only


def test_who_does_not_fit_lets_the_next_class_by_and_stays() -> None:
    normal, batch = Waiter(priority=NORMAL), Waiter(priority=BATCH)
    fair = filled([normal, batch])
    asked: list[Waiter] = []

    def fits(waiter: Waiter) -> bool:
        asked.append(waiter)
        return waiter.priority is BATCH

    assert fair.pop(fits) is batch
    assert asked == [normal, batch]
    assert fair.pop(fits) is None
    assert fair.pop() is normal


# --- batch --------------------------------------------------------------------------------------------------------


def test_a_batch_request_that_waited_long_counts_as_a_normal_one() -> None:
    clock = FakeClock()
    fair = queue(clock, promote_after_s=60)
    batch = Waiter(B, priority=BATCH)
    fair.push(batch)
    clock.advance(59.9)
    fair.push(Waiter(A))
    assert names(popped(fair, most=1)) == "a"
    clock.advance(0.1)
    fair.push(Waiter(A))
    fair.push(Waiter(A, priority=INTERACTIVE))
    assert names(popped(fair)) == "aba"
    assert fair.oldest_since() is None


def test_under_endless_normal_work_every_batch_request_gets_its_turn() -> None:
    clock = FakeClock()
    fair = queue(clock, promote_after_s=60)
    batch = [Waiter(B, 5, BATCH) for _ in range(10)]
    for waiter in batch:
        fair.push(waiter)
    served: list[Waiter] = []
    for _ in range(200):
        fair.push(Waiter(A, 5))
        fair.push(Waiter(C, 5))
        served += popped(fair, most=1)
        clock.advance(1)
    assert [waiter for waiter in served if waiter.tenant is B] == batch


def test_a_promoted_one_may_still_hang_up() -> None:
    clock = FakeClock()
    fair = queue(clock)
    batch = Waiter(priority=BATCH)
    fair.push(batch)
    clock.advance(100)
    assert fair.ahead_of(Waiter(B)) == 1
    assert fair.remove(batch)
    assert not fair.remove(batch)
    assert fair.pop() is None


# --- credit -------------------------------------------------------------------------------------------------------


def test_who_comes_back_has_saved_up_nothing() -> None:
    fair = queue()
    for _ in range(50):
        fair.push(Waiter(A, 10))
    popped(fair, most=40)
    for _ in range(10):
        fair.push(Waiter(B, 10))
    assert names(popped(fair)) == "ba" * 10


def test_a_request_that_runs_on_saves_up_nothing_either() -> None:
    fair = queue()
    fair.charge(Waiter(B, 10))
    for _ in range(50):
        fair.push(Waiter(A, 10))
    popped(fair, most=40)
    for _ in range(10):
        fair.push(Waiter(B, 10))
    assert names(popped(fair)) == "ba" * 10


def test_nor_does_a_batch_request_that_waits_for_ever() -> None:
    fair = filled([Waiter(B, 10, BATCH), *(Waiter(A, 10) for _ in range(50))])
    popped(fair, most=40)
    for _ in range(10):
        fair.push(Waiter(B, 10))
    assert names(popped(fair)) == "ba" * 10 + "b"


def test_what_was_used_while_nobody_waited_is_not_held_against_anybody() -> None:
    fair = queue()
    for _ in range(100):
        fair.charge(Waiter(A, 10))
    for _ in range(5):
        fair.push(Waiter(B, 10))
        fair.push(Waiter(A, 10))
    assert names(popped(fair, most=4)) in {"bbab", "baba"}


def test_settling_moves_the_next_turn_by_what_was_really_used() -> None:
    fair = filled(Waiter(tenant, 10) for tenant in (A, B) for _ in range(10))
    assert names(popped(fair, most=2)) == "ab"
    fair.settle(A, 10, 40)
    fair.settle(B, 10, 0)
    assert names(popped(fair, most=5)) == "bbbba"


def test_hanging_up_while_running_costs_nothing() -> None:
    fair = filled([Waiter(A, 1_000), Waiter(A, 10), Waiter(B, 10), Waiter(B, 10)])
    fair.pop()
    fair.settle(A, 1_000, 0)
    assert names(popped(fair)) == "bab"


def test_settling_counts_in_the_class_in_which_it_was_charged() -> None:
    fair = filled(Waiter(tenant, 10, priority) for priority in (NORMAL, BATCH) for tenant in (A, B) for _ in range(3))
    assert names(popped(fair, most=1)) == "a"
    fair.settle(A, 10, 40)
    assert names(popped(fair)) == "bbbaa" + "ababab"


def test_settling_what_was_never_charged_is_a_defect() -> None:
    with pytest.raises(KeyError):
        queue().settle(A, 1, 1)


# --- bounds -------------------------------------------------------------------------------------------------------


def test_a_full_queue_has_no_room() -> None:
    fair = queue(places=2, token_places=100)
    assert fair.has_room_for(Waiter(prompt_tokens=1_000))
    fair.push(Waiter(prompt_tokens=60))
    assert [fair.has_room_for(Waiter(prompt_tokens=n)) for n in (40, 41)] == [True, False]
    fair.push(Waiter(prompt_tokens=1))
    assert not fair.has_room_for(Waiter(prompt_tokens=0))


def test_in_a_full_queue_the_tenant_that_fills_it_makes_room_for_others() -> None:
    full = queue(places=4)
    waiters = [Waiter(A, expires_at=number) for number in (3, 9, 5, 7)]
    for waiter in waiters:
        full.push(waiter)
    assert full.yielding_to(Waiter(A)) == []
    assert full.yielding_to(Waiter(B)) == [waiters[1]], "whose turn would have come last"
    for _ in range(2):
        (yields,) = full.yielding_to(Waiter(B))
        full.remove(yields)
        full.push(Waiter(B))
    assert full.yielding_to(Waiter(B)) == [], "both hold the same"
    assert len(full.yielding_to(Waiter(C))) == 1


def test_places_go_by_weight() -> None:
    heavy = Tenant("heavy", weight=3)
    full = queue(places=4)
    for tenant in (heavy, heavy, heavy, A):
        full.push(Waiter(tenant))
    assert full.yielding_to(Waiter(A)) == []
    assert full.yielding_to(Waiter(heavy)) == []
    assert full.yielding_to(Waiter(B)) == [], "nobody holds more for its weight than B would"


def test_a_lower_class_makes_room_for_a_higher_one_and_never_the_other_way() -> None:
    full = queue(places=3)
    batch = [Waiter(A, priority=BATCH, expires_at=number) for number in (1, 2)]
    for waiter in (*batch, Waiter(A, priority=NORMAL)):
        full.push(waiter)
    assert full.yielding_to(Waiter(A, priority=INTERACTIVE)) == [batch[1]]
    assert full.yielding_to(Waiter(A, priority=NORMAL)) == [batch[1]]
    assert full.yielding_to(Waiter(A, priority=BATCH)) == []
    assert full.yielding_to(Waiter(B, priority=BATCH)) == [batch[1]]


def test_as_many_make_room_as_a_large_prompt_needs_and_nobody_where_that_is_not_enough() -> None:
    full = queue(token_places=100)
    waiters = [Waiter(A, prompt_tokens=20, expires_at=number) for number in (3, 9, 5, 7, 1)]
    for waiter in waiters:
        full.push(waiter)
    assert full.yielding_to(Waiter(B, prompt_tokens=60)) == [waiters[1], waiters[3], waiters[2]]
    assert full.yielding_to(Waiter(B, prompt_tokens=90)) == []
    assert len(full.yielding_to(Waiter(B, prompt_tokens=900, priority=INTERACTIVE))) == 5, "an empty queue takes it"


def test_one_newcomer_takes_only_so_many_places() -> None:
    full = queue(token_places=100)
    for _ in range(50):
        full.push(Waiter(A, prompt_tokens=2))
    assert len(full.yielding_to(Waiter(B, prompt_tokens=2 * MOST_YIELDING))) == MOST_YIELDING
    assert full.yielding_to(Waiter(B, prompt_tokens=2 * MOST_YIELDING + 1)) == []


@given(st.lists(st.sampled_from([A, B, C]), max_size=120), st.integers(1, 12))
def test_whoever_fills_the_queue_nobody_below_an_even_share_is_refused(comings: list[Tenant], places: int) -> None:
    full = queue(places=places)
    held: Counter[str] = Counter()
    for tenant in comings:
        newcomer = Waiter(tenant)
        if not full.has_room_for(newcomer):
            yielding = full.yielding_to(newcomer)
            if not yielding:
                assert held[tenant.name] + 1 >= max(held.values())
                continue
            (yields,) = yielding
            held[yields.tenant.name] -= 1
            assert held[yields.tenant.name] >= held[tenant.name]
            full.remove(yields)
        full.push(newcomer)
        held[tenant.name] += 1
        assert len(full) <= places


def test_a_queue_without_places_never_has_room() -> None:
    assert not queue(places=0).has_room_for(Waiter())


# --- how many are ahead -------------------------------------------------------------------------------------------


def test_a_newcomer_waits_for_its_betters_and_for_its_own_turn() -> None:
    fair = filled(
        [
            *(Waiter(A, 10) for _ in range(50)),
            *(Waiter(B, 10, INTERACTIVE) for _ in range(3)),
            *(Waiter(C, 10, BATCH) for _ in range(7)),
        ]
    )
    assert fair.ahead_of(Waiter(C, 10, INTERACTIVE)) == 1
    assert fair.ahead_of(Waiter(C, 10, NORMAL)) == 4
    assert fair.ahead_of(Waiter(A, 10, NORMAL)) == 53
    assert fair.ahead_of(Waiter(A, 10, NORMAL, expires_at=5)) == 3
    assert fair.ahead_of(Waiter(B, 10, BATCH)) == 53


TENANTS = st.sampled_from([A, B, C])


@given(st.lists(TENANTS, max_size=30), st.lists(TENANTS, max_size=20), st.integers(0, 30), TENANTS)
def test_where_all_cost_the_same_it_is_exact(before: list[Tenant], then: list[Tenant], turns: int, who: Tenant) -> None:
    fair = filled(Waiter(tenant, 10) for tenant in before)
    popped(fair, most=turns)
    for tenant in then:
        fair.push(Waiter(tenant, 10))
    newcomer = Waiter(who, 10)
    ahead = fair.ahead_of(newcomer)
    fair.push(newcomer)
    assert popped(fair).index(newcomer) == ahead


@given(st.lists(TENANTS, min_size=1, max_size=30), st.integers(0, 20))
def test_whoever_waits_has_the_place_at_which_it_is_served(crowd: list[Tenant], turns: int) -> None:
    fair = filled(Waiter(tenant, 10) for tenant in crowd)
    popped(fair, most=turns)
    places = {id(place.waiter): fair.place_of(place.waiter) for place in fair._places.values()}
    assert [places[id(waiter)] for waiter in popped(fair)] == list(range(1, len(places) + 1))


def test_a_place_counts_higher_classes_and_who_does_not_wait_has_none() -> None:
    waiter = Waiter(A, 10, NORMAL)
    fair = filled([*(Waiter(B, 10, INTERACTIVE) for _ in range(3)), waiter, Waiter(C, 10, BATCH)])
    assert fair.place_of(waiter) == 4
    assert fair.place_of(Waiter(A)) == 0


def test_whose_turn_comes_is_told_in_which_company() -> None:
    clock = FakeClock()
    fair = queue(clock, promote_after_s=60)
    old = Waiter(C, 1, BATCH)
    fair.push(old)
    clock.advance(61)
    fair.push(Waiter(A, 1))
    told: dict[str, Turn] = {}

    def look(waiter: Waiter) -> bool:
        told[waiter.tenant.name] = fair.turn_of(waiter)
        return True

    while fair.pop(look) is not None:
        pass
    assert (told["a"].promoted, told["c"].promoted) == (False, True)
    assert {told["a"].tenants, told["c"].tenants} == {1, 2}


# --- fairness -----------------------------------------------------------------------------------------------------

WEIGHTS = st.sampled_from([0.5, 1.0, 2.0, 5.0])
COSTS = st.floats(1, 1_000)


@st.composite
def crowds(draw: st.DrawFn) -> list[Tenant]:
    return [Tenant(f"t{i}", weight=draw(WEIGHTS)) for i in range(draw(st.integers(2, 6)))]


def spread(history: list[dict[str, float]], one: Tenant, other: Tenant) -> float:
    """The largest difference of what two were served by weight, over every stretch of time."""
    gaps = [served[one.name] / one.weight - served[other.name] / other.weight for served in history]
    return max(gaps) - min(gaps)


@given(crowds(), st.lists(st.integers(0, 5), max_size=20), st.lists(COSTS, min_size=1, max_size=20))
def test_those_that_always_wait_are_served_alike(crowd: list[Tenant], before: list[int], costs: list[float]) -> None:
    """The bound: never more than twice the largest single cost by weight apart, whatever was before."""
    fair, cost = queue(), cycle(costs)
    for i in before:
        fair.charge(Waiter(crowd[i % len(crowd)], next(cost)))
    for tenant in crowd * 2:
        fair.push(Waiter(tenant, next(cost)))
    served: dict[str, float] = dict.fromkeys((tenant.name for tenant in crowd), 0.0)
    history = [served.copy()]
    for _ in range(60):
        (waiter,) = popped(fair, most=1)
        fair.push(Waiter(waiter.tenant, next(cost)))
        served[waiter.tenant.name] += waiter.cost
        history.append(served.copy())
    largest = max(costs) / min(tenant.weight for tenant in crowd)
    for one, other in combinations(crowd, 2):
        assert spread(history, one, other) <= 2 * largest + 1e-6


@given(
    crowds(),
    st.lists(COSTS, min_size=1, max_size=20),
    st.lists(COSTS, min_size=1, max_size=20),
    st.lists(st.integers(0, 3), min_size=1, max_size=20),
)
def test_also_in_what_they_really_use(
    crowd: list[Tenant], costs: list[float], uses: list[float], ends: list[int]
) -> None:
    """Estimates may be wrong by anything: what runs at once is all that can be missing in the count."""
    fair, cost, use, slots = queue(), cycle(costs), cycle(uses), max(ends) + 1
    for tenant in crowd * 2:
        fair.push(Waiter(tenant, next(cost)))
    running: list[Waiter] = []
    counted: dict[str, float] = dict.fromkeys((tenant.name for tenant in crowd), 0.0)
    history = [counted.copy()]
    for end, used in islice(zip(cycle(ends), use, strict=False), 60):
        if len(running) == slots:
            done = running.pop(end)
            fair.settle(done.tenant, done.cost, used)
            counted[done.tenant.name] += used - done.cost
        (waiter,) = popped(fair, most=1)
        fair.push(Waiter(waiter.tenant, next(cost)))
        running.append(waiter)
        counted[waiter.tenant.name] += waiter.cost
        history.append(counted.copy())
    largest = max(costs + uses) / min(tenant.weight for tenant in crowd)
    for one, other in combinations(crowd, 2):
        assert spread(history, one, other) <= 2 * (slots + 1) * largest + 1e-6


@given(crowds(), st.lists(st.tuples(st.integers(0, 5), COSTS), max_size=40), st.integers(0, 30))
def test_a_light_tenant_is_next_after_at_most_one_turn_of_each_other(
    crowd: list[Tenant], waiting: list[tuple[int, float]], turns: int
) -> None:
    fair = filled(Waiter(crowd[i % len(crowd)], cost) for i, cost in waiting)
    popped(fair, most=turns)
    light = Waiter(Tenant("light"), 1_000)
    fair.push(light)
    served = popped(fair)
    ahead = [waiter.tenant.name for waiter in served[: served.index(light)]]
    assert len(set(ahead)) == len(ahead)


# --- months -------------------------------------------------------------------------------------------------------


def test_counters_stay_small_and_keep_the_order_however_long_it_runs() -> None:
    fair = filled(Waiter(tenant, lane.HIGHEST) for tenant in (A, B, C) for _ in range(2))
    assert len(popped(fair, most=3)) == 3
    turns = ""
    for _ in range(300):
        waiter = fair.pop()
        assert waiter is not None
        fair.settle(waiter.tenant, waiter.cost, waiter.cost)
        fair.push(Waiter(waiter.tenant, lane.HIGHEST))
        turns += waiter.tenant.name
    assert turns == turns[:3] * 100
    assert max(account.served for account in fair._lanes[NORMAL]._accounts.values()) <= 2 * lane.HIGHEST


def test_tenants_that_are_gone_are_forgotten_even_if_it_is_never_quiet() -> None:
    fair = queue()
    fair.push(Waiter(A, 1))
    for i in range(10_000):
        guest = Waiter(Tenant(f"guest-{i}"), 1)
        fair.charge(guest)
        fair.settle(guest.tenant, 1, 1)
        fair.push(Waiter(A, 1))
        popped(fair, most=1)
    assert len(fair._lanes[NORMAL]._accounts) < 200


def test_a_tenant_that_used_more_than_its_turn_is_not_forgotten_for_it() -> None:
    fair = filled(Waiter(B, 10) for _ in range(3))
    fair.charge(Waiter(A, 1_000))
    fair.settle(A, 1_000, 1_000)
    for i in range(100):
        fair.charge(Waiter(Tenant(f"guest-{i}")))
    fair.push(Waiter(A, 10))
    assert names(popped(fair)) == "bbba"


def test_when_all_is_done_nothing_is_left() -> None:
    waiters = [Waiter(tenant, cost) for tenant in (A, B) for cost in (1, 2, 2, 3)]
    fair = filled(waiters)
    fair.remove(waiters[0])
    for waiter in popped(fair):
        fair.settle(waiter.tenant, waiter.cost, 5)
    assert (len(fair), fair.tokens, fair._running, fair._places, fair._unpromoted) == (0, 0, {}, {}, {})
    assert all(not each._accounts and not each._order for each in fair._lanes)


# --- any order of events ------------------------------------------------------------------------------------------

NAMED = {tenant.name: tenant for tenant in (A, B, C, Tenant("heavy", weight=4))}


class Life(RuleBasedStateMachine):
    """Beside a list of who waits: whatever happens in whatever order, the rules hold."""

    PLACES, TOKEN_PLACES, PROMOTE_AFTER_S = 8, 100, 10.0

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.queue: FairQueue[Waiter] = FairQueue(self.PLACES, self.TOKEN_PLACES, self.PROMOTE_AFTER_S, self.clock)
        self.since: dict[Waiter, float] = {}
        self.running: list[Waiter] = []
        self.left: list[Waiter] = []

    def of_class(self, waiter: Waiter) -> Priority:
        promoted = waiter.priority is BATCH and self.clock() - self.since[waiter] >= self.PROMOTE_AFTER_S
        return NORMAL if promoted else waiter.priority

    @rule(
        tenant=st.sampled_from(list(NAMED.values())),
        cost=st.integers(0, 50).map(float),
        priority=st.sampled_from(Priority),
        tokens=st.integers(0, 60),
        left_s=st.sampled_from([1.0, 5.0, 5.0, math.inf]),
    )
    def come(self, tenant: Tenant, cost: float, priority: Priority, tokens: int, left_s: float) -> None:
        waiter = Waiter(tenant, cost, priority, tokens, self.clock() + left_s)
        waiting = sum(each.prompt_tokens for each in self.since)
        room = len(self.since) < self.PLACES and (not self.since or waiting + tokens <= self.TOKEN_PLACES)
        assert self.queue.has_room_for(waiter) == room
        ahead = self.queue.ahead_of(waiter)
        better = sum(self.of_class(each) < priority for each in self.since)
        alike = sum(self.of_class(each) == priority for each in self.since)
        assert better <= ahead <= better + alike
        if room:
            self.queue.push(waiter)
            self.since[waiter] = self.clock()

    @precondition(lambda self: not self.since)
    @rule(tenant=st.sampled_from(list(NAMED.values())), cost=st.integers(0, 50).map(float))
    def go_at_once(self, tenant: Tenant, cost: float) -> None:
        waiter = Waiter(tenant, cost)
        self.queue.charge(waiter)
        self.running.append(waiter)

    @precondition(lambda self: self.since)
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(list(self.since)))
        assert self.queue.remove(waiter)
        del self.since[waiter]
        self.left.append(waiter)

    @rule(barred=st.sets(st.sampled_from(Priority), max_size=2))
    def take(self, barred: set[Priority]) -> None:
        able = {self.of_class(each) for each in self.since} - barred
        waiter = self.queue.pop(lambda each: self.of_class(each) not in barred)
        if not able:
            assert waiter is None
            return
        assert waiter is not None
        best = min(able)
        assert self.of_class(waiter) == best
        rivals = [w for w in self.since if w.tenant is waiter.tenant and self.of_class(w) == best]
        assert waiter is min(rivals, key=lambda each: each.expires_at)
        del self.since[waiter]
        self.running.append(waiter)
        self.left.append(waiter)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), used=st.integers(0, 100).map(float))
    def finish(self, data: st.DataObject, used: float) -> None:
        waiter = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.queue.settle(waiter.tenant, waiter.cost, used)

    @rule(seconds=st.sampled_from([0.5, 3.0, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.queue) == len(self.since) <= self.PLACES
        assert self.queue.tokens == sum(each.prompt_tokens for each in self.since)
        assert len(self.queue) <= 1 or self.queue.tokens <= self.TOKEN_PLACES
        assert self.queue.oldest_since() == min(self.since.values(), default=None)

    @invariant()
    def who_left_is_gone(self) -> None:
        assert not any(self.queue.remove(waiter) for waiter in self.left[-3:])

    @invariant()
    def accounts_agree(self) -> None:
        waits: dict[Priority, set[str]] = defaultdict(set)
        for account in [account for each in self.queue._lanes for account in each._accounts.values()]:
            assert math.isclose(
                account.backlog,
                sum(place.waiter.cost / place.waiter.tenant.weight for place in account.waiting),
                abs_tol=1e-6,
            )
        for priority, each in zip(Priority, self.queue._lanes, strict=True):
            waits[priority] = {account.name for account in each._order}
            assert waits[priority] == {account.name for account in each._accounts.values() if account.waiting}
            assert [account.rank for account in each._order] == sorted(account.rank for account in each._order)

    def teardown(self) -> None:
        self.left += popped(self.queue)
        assert len(set(self.left)) == len(self.left)
        assert (len(self.queue), self.queue.tokens) == (0, 0)


TestLife = Life.TestCase


# --- without backpressure -----------------------------------------------------------------------------------------


def test_without_backpressure_it_is_first_come_first_served_without_bound() -> None:
    clock = FakeClock(now=7)
    fifo: Fifo[Waiter] = Fifo(clock)
    waiters = [Waiter(B, 1, BATCH), Waiter(A, 1, INTERACTIVE, expires_at=0), Waiter(A, 1), Waiter(B, 1)]
    for waiter in waiters:
        assert fifo.has_room_for(waiter)
        assert fifo.ahead_of(waiter) == len(fifo)
        fifo.push(waiter)
        assert (fifo.place_of(waiter), fifo.turn_of(waiter)) == (len(fifo), Turn())
        clock.advance(1)
    assert fifo.place_of(Waiter()) == 0
    assert (len(fifo), fifo.tokens, fifo.oldest_since()) == (4, 4, 7)
    assert fifo.pop(lambda waiter: waiter is not waiters[0]) is None
    assert fifo.remove(waiters[2])
    assert not fifo.remove(waiters[2])
    assert popped(fifo) == [waiters[i] for i in (0, 1, 3)]
    assert (len(fifo), fifo.tokens, fifo.oldest_since()) == (0, 0, None)


def test_without_backpressure_nothing_is_charged() -> None:
    fifo: Queue[Waiter] = Fifo(FakeClock())
    fifo.charge(Waiter())
    fifo.settle(A, 1, 1)
    assert fifo.pop() is None
