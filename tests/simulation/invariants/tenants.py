"""What tenants may use, what they share, and what is put to their account."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate, combinations

from app.engines.scripted import Work
from app.gateway.ticket import cost_of
from app.reliability.ledger import MOST_TOKENS
from app.reliability.stores.redis_quota import COUNTS, RENEWED_S
from tests.simulation.history import History, Seen
from tests.simulation.invariants.base import away, hedges, invariant, places_may_lapse, times_emptied, with_records
from tests.simulation.world import BEGAN_S, TenantPlan, Trouble

MINUTE_S = 60.0

PRIORITIES = ("interactive", "normal", "batch")


@invariant
def nobody_has_more_at_once_than_allowed(history: History) -> Iterator[str]:
    for tenant in history.world.tenants:
        if tenant.concurrent is not None:
            works = [work for work in _works_of(history, tenant.name) if work.ended is not None]
            # who leaves in the same moment in which another comes is not there any more
            steps = sorted([(work.began, 1) for work in works] + [(work.ended or 0.0, -1) for work in works])
            most = max(accumulate(step for _, step in steps), default=0)
            allowed = _wholes(history) * tenant.concurrent + sum(_parts(history, tenant.concurrent))
            if most > allowed * (2 if hedges(history) else 1):
                yield f"{tenant.name} had {most} requests at engines at once, and may have {allowed}"


@invariant
def nobody_makes_more_requests_than_allowed(history: History) -> Iterator[str]:
    for tenant in history.world.tenants:
        limit = tenant.requests_per_minute
        if limit is not None:
            answered = len({work.call.id for work in _works_of(history, tenant.name) if work.error is None})
            most = _within(history, limit)
            if answered > most:
                yield f"{answered} requests of {tenant.name} were answered, and at most {most:.1f} may be"


@invariant
def nobody_uses_more_tokens_than_allowed_and_one_request(history: History) -> Iterator[str]:
    """As far as engines keep to what was asked of them, and tell the truth of it."""
    troubles = {fault.trouble for fault in history.world.faults}
    if troubles & {Trouble.LYING, Trouble.UNENDING}:
        return
    for tenant in history.world.tenants:
        limit = tenant.tokens_per_minute
        if limit is not None:
            of_them = [record for record in history.records if record.tenant == tenant.name and not record.guessed]
            used = [record.usage.tokens for record in of_them if record.usage is not None]
            most = _within(history, limit) + max(used, default=0) * (1 + len(_parts(history, limit)))
            if sum(used) > most:
                yield f"{tenant.name} used {sum(used)} tokens, and may use {most:.0f}"


def _within(history: History, limit: int) -> float:
    """What a minute's limit allows: a whole minute's worth at once, and what comes back meanwhile. A gateway that
    cannot reach Redis has its part of that beside; a Redis that has forgotten everything begins anew."""
    minutes = (history.ended - BEGAN_S) / MINUTE_S
    return limit * (_wholes(history) + minutes) + sum(part * (1 + minutes) for part in _parts(history, limit))


def _wholes(history: History) -> int:
    """The whole limit, and again for each time that Redis forgot what was taken of it."""
    return 1 + times_emptied(history) + places_may_lapse(history)


def _parts(history: History, limit: int) -> list[int]:
    """Of each gateway that could not reach Redis for a while. It knows how many gateways there are, unless it could not
    ask before the first client came, or Redis has forgotten it again and again."""
    asked = all(fault.at > BEGAN_S - RENEWED_S for fault in history.world.store_faults)
    known = asked and times_emptied(history) < COUNTS
    part = max(1, limit // history.world.gateways) if known else limit
    return [part for gateway in range(history.world.gateways) if away(history, gateway)]


@invariant
def those_who_wait_are_served_by_their_weights(history: History) -> Iterator[str]:
    """While two tenants both have somebody in one line, none gets ahead of the other by more than the work under way
    could explain."""
    settings = history.world.settings
    busy = any(work.error is not None for works in history.works.values() for work in works)
    if history.world.shared:  # where lines form at several gateways, and somebody is asked before; others have none
        return
    if busy or not settings["ENABLE_BACKPRESSURE"] or settings["ADAPTIVE_CONCURRENCY"] or hedges(history):
        return
    slots = len(history.world.engines) * settings["MAX_CONCURRENT_REQUESTS"]
    for line, waits in _lines(history).items():
        for one, other in combinations(history.world.tenants, 2):
            for since, until in _both_wait(waits[one.name], waits[other.name]):
                got = [_served(history, tenant, line, since, until) for tenant in (one, other)]
                most = 2 * (1 + slots) * max(map(_cost, history.seen)) / min(one.weight, other.weight)
                if abs(got[0] - got[1]) > most:
                    yield (
                        f"from {since:.3f} to {until:.3f} {one.name} was served {got[0]:.0f} and {other.name} "
                        f"{got[1]:.0f} by weight, while both waited for {line}; {most:.0f} may be between them"
                    )


Line = tuple[str, str]
"""A model, and the priority of those who wait."""
Spans = list[tuple[float, float]]


def _lines(history: History) -> dict[Line, dict[str, Spans]]:
    """By line and tenant: when each of those waited who waited."""
    works = history.works_by_request()
    lines: dict[Line, dict[str, Spans]] = defaultdict(lambda: defaultdict(list))
    for seen, record in with_records(history):
        if record.queued_s > 0 and seen.visit.tenant is not None and seen.body_sent is not None:
            tries = works[seen.visit.id]
            until = tries[0][1].began if tries else record.ended
            lines[_line_of(history, seen)][seen.visit.tenant].append((seen.body_sent, until))
    return lines


def _line_of(history: History, seen: Seen) -> Line:
    own = next((tenant.priority for tenant in history.world.tenants if tenant.name == seen.visit.tenant), "normal")
    return seen.visit.model, max(own, seen.visit.priority or own, key=PRIORITIES.index)


def _both_wait(ones: Spans, others: Spans) -> Iterator[tuple[float, float]]:
    """The stretches in which at least one of each waits all the time."""
    for one in _joined(ones):
        for other in _joined(others):
            since, until = max(one[0], other[0]), min(one[1], other[1])
            if since < until:
                yield since, until


def _joined(spans: Spans) -> Spans:
    joined: Spans = []
    for since, until in sorted(spans):
        if joined and since <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], until))
        else:
            joined.append((since, until))
    return joined


def _served(history: History, tenant: TenantPlan, line: Line, since: float, until: float) -> float:
    """By weight: the costs of its requests that began then."""
    works = history.works_by_request()
    begun = [
        seen
        for seen in history.seen
        if seen.visit.tenant == tenant.name
        and _line_of(history, seen) == line
        and any(since < work.began <= until for _, work in works[seen.visit.id][:1])
    ]
    return sum(map(_cost, begun)) / tenant.weight


def _cost(seen: Seen) -> float:
    """What it is expected to cost before anything is known, or less."""
    asked = seen.visit.tokens + seen.visit.spare_tokens
    return cost_of(len(seen.visit.body()) // 4, asked)


def _works_of(history: History, tenant: str) -> list[Work]:
    return [work for works in history.works.values() for work in works if work.call.tenant.name == tenant]


@invariant
def the_ledger_has_what_was_recorded(history: History) -> Iterator[str]:
    """Each request that an engine worked for, once, with all that it used."""
    if any(seen.visit.idempotency_key is not None for seen in history.seen):
        return  # runs with a key may outlive their requests, and their records
    used = [record.usage for record in history.records if record.usage is not None]
    expected = (
        len(used),
        sum(min(usage.prompt_tokens, MOST_TOKENS) for usage in used),
        sum(min(usage.completion_tokens, MOST_TOKENS) for usage in used),
    )
    for counted in history.counted:
        if counted.told != expected:
            yield f"the ledger has {counted.told} requests, prompt and completion tokens, and {expected} are recorded"
