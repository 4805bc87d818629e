"""What gateways share through Redis, while they reach it and while they do not."""

from collections.abc import Iterator

from app.reliability.stores.books import ROUNDS_UNTIL_SURE
from app.reliability.stores.redis import AFTER_DOUBT_S, WHILE_DOWN_S
from app.reliability.stores.redis_ledger import READ_LIMIT_S
from app.telemetry.base import StoreChanged
from tests.simulation.draw import WITH_REDIS
from tests.simulation.history import History
from tests.simulation.invariants.base import AT_ONCE_S, asking_s, away, code_of, invariant, limits_s, with_records
from tests.simulation.simulate import MAKES_SURE_S

assert ROUNDS_UNTIL_SURE * max(WITH_REDIS["LEDGER_FLUSH_INTERVAL"]) < MAKES_SURE_S, "worlds end too early"

UNAVAILABLE = "idempotency_unavailable"


@invariant
def while_redis_is_away_nothing_is_begun_for_a_key(history: History) -> Iterator[str]:
    """Nobody could say whether it is begun elsewhere."""
    works = history.works_by_request()
    for gateway in range(history.world.gateways):
        for since, until in away(history, gateway):
            for seen in history.all_seen:
                came = seen.body_sent
                if seen.visit.gateway == gateway and seen.visit.idempotency_key is not None and came is not None:
                    begun = [work for _, work in works[seen.visit.id] if work.began < until - AT_ONCE_S]
                    if since + AT_ONCE_S < came < until - AT_ONCE_S and begun:
                        yield f"{seen.visit.id} came to gateway-{gateway} while Redis was away, and was begun"


@invariant
def who_brings_a_key_while_redis_is_away_hears_so_at_once(history: History) -> Iterator[str]:
    for seen, record in with_records(history):
        periods = away(history, seen.visit.gateway)
        came, left = seen.body_sent, seen.returned
        if record.error == "StoreDown" and not record.replayed and came is not None and left is not None:
            known = any(since + AT_ONCE_S < came < until - AT_ONCE_S for since, until in periods)
            if known and seen.status == 503 and not _has_twin(history, seen.visit.id):
                late = left - seen.blocked_s - came
                if late > AT_ONCE_S:
                    yield f"{record.id} heard after {late:.3f} s that Redis is away, which was known"


def _has_twin(history: History, name: str) -> bool:
    """It may have waited for what another one began."""
    return any(len(family) > 1 for family in history.families() if any(seen.visit.id == name for seen in family))


@invariant
def redis_is_no_reason_to_refuse_who_brings_no_key(history: History) -> Iterator[str]:
    for seen, record in with_records(history):
        if seen.visit.idempotency_key is None and (record.error == "StoreDown" or code_of(seen) == UNAVAILABLE):
            yield f"{record.id} has no key, and was refused because of Redis"


@invariant
def redis_keeps_nobody_waiting_longer_than_allowed(history: History) -> Iterator[str]:
    """From the last of its body until it is in line, at an engine or refused. With a key it may wait for others."""
    works = history.works_by_request()
    for seen, record in with_records(history):
        if seen.visit.idempotency_key is None and seen.body_sent is not None and seen.returned is not None:
            begun = [work.began for _, work in works[seen.visit.id]] + [since for since, _ in record.waits]
            waited = min([*begun, seen.returned - seen.blocked_s]) - seen.body_sent
            if waited > limits_s(history, record.tenant) + AT_ONCE_S:
                yield f"{record.id} waited for {waited:.3f} s before anything was done for it"


@invariant
def no_exchange_with_redis_lasts_longer_than_allowed(history: History) -> Iterator[str]:
    for exchange in history.exchanges:
        reads = exchange.commands[0][0] == "HGETALL"
        most = READ_LIMIT_S if reads else history.world.settings["REDIS_TIMEOUT"]
        lasted = (exchange.ended or history.ended) - exchange.began
        if lasted > most + AT_ONCE_S:
            yield f"gateway-{exchange.gateway} waited for {lasted:.3f} s: {exchange}"


@invariant
def redis_is_given_up_only_where_something_is_wrong(history: History) -> Iterator[str]:
    longest = READ_LIMIT_S + asking_s(history)
    for at, gateway, event in history.events:
        if isinstance(event, StoreChanged) and not event.available:
            faults = [fault for fault in history.world.store_faults if fault.meets(gateway)]
            if not any(fault.at - AT_ONCE_S <= at <= fault.until + longest for fault in faults):
                yield f"gateway-{gateway} gave Redis up at {at:.3f}: {event.reason}"


@invariant
def redis_is_found_again_soon_after_it_is_back(history: History) -> Iterator[str]:
    """A look may be under way when it comes back, and the next one has its pause."""
    soon = WHILE_DOWN_S + AFTER_DOUBT_S + asking_s(history)
    for gateway in range(history.world.gateways):
        for since, until in away(history, gateway):
            ends = [fault.until for fault in history.world.store_faults if fault.meets(gateway)]
            back = max([since, *(end for end in ends if end <= until)])
            if until > back + soon + AT_ONCE_S and not any(back < end for end in ends):
                yield f"Redis was back at {back:.3f}, and gateway-{gateway} found it at {until:.3f}"


@invariant
def gateways_tell_the_same_usage_which_is_all_of_it(history: History) -> Iterator[str]:
    """Whatever failed, was done twice or forgotten meanwhile; and keys may outlive their requests and still count."""
    if not history.world.shared:
        return
    expected = tuple(map(sum, zip(*(counted.own for counted in history.counted), strict=True)))
    for gateway, counted in enumerate(history.counted):
        if not counted.of_all or counted.told != expected:
            yield f"gateway-{gateway} tells {counted.told}, of all: {counted.of_all}; all have counted {expected}"


@invariant
def nothing_is_held_in_redis_when_all_is_over(history: History) -> Iterator[str]:
    """Except what Redis was told when nobody waited for it any more: that ends by its lease."""
    late = {str(part) for each in history.exchanges if each.done_late for command in each.commands for part in command}
    for what, held in (("limits", history.left.places), ("keys", history.left.claims)):
        for name in held:
            if name not in late:
                yield f"{name} holds its part of the {what} when all is over"
