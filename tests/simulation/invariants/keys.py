"""Idempotency keys: one execution a key, and one answer for all who ask with it."""

from collections.abc import Iterator
from itertools import pairwise

from app.engines.scripted import End, Work
from tests.simulation.history import History, Seen
from tests.simulation.invariants.base import TICK_S, hedges, invariant, keys_may_lapse, times_emptied

DAY_S = 86_400.0


@invariant
def a_key_is_executed_with_success_at_most_once(history: History) -> Iterator[str]:
    """And once more each time that Redis comes back empty: it has forgotten who has a key, and what was answered."""
    if _forgets(history):
        return
    works = history.works_by_answer()
    for family in _keyed(history):
        done = [(name, work) for name, work in works[family[0].visit.id] if _succeeded(work)]
        if len(done) > 1 + times_emptied(history) and not _cut_by_a_drain(history, done[0][1]):
            yield f"{family[0].visit.id} was done {len(done)} times, at {', '.join(name for name, _ in done)}"


@invariant
def a_key_is_executed_once_at_a_time(history: History) -> Iterator[str]:
    works = history.works_by_answer()
    if hedges(history) or times_emptied(history) or keys_may_lapse(history):
        return
    for family in _keyed(history):
        for (_, earlier), (_, later) in pairwise(works[family[0].visit.id]):
            if earlier.ended is None or earlier.ended > later.began:
                yield f"{earlier.call.id} and {later.call.id} have one key and were worked on at once"


@invariant
def all_who_ask_with_one_key_get_the_same_bytes(history: History) -> Iterator[str]:
    """Those who come back for the rest get the same from there."""
    if _forgets(history) or times_emptied(history):
        return
    for family in _keyed(history):
        whole = [seen for seen in family if seen.status == 200 and seen.ended is not None and seen.error is None]
        bodies = {seen.body for seen in whole if not seen.visit.seen_events}
        if len(bodies) > 1:
            yield f"{family[0].visit.id} and its twins got {len(bodies)} different answers"
        for seen in whole:
            if seen.visit.seen_events and not any(body.endswith(seen.body) for body in bodies or {seen.body}):
                yield f"{seen.visit.id} came back for the rest and got something else"


@invariant
def who_comes_back_gets_the_rest(history: History) -> Iterator[str]:
    """From the event after the last that it has, and nothing twice."""
    for family in _keyed(history):
        for seen in family:
            if seen.visit.seen_events and seen.is_stream and seen.body.startswith(b"id: "):
                first = int(seen.body.partition(b"\n")[0].removeprefix(b"id: "))
                if first != seen.visit.seen_events + 1:
                    yield f"{seen.visit.id} has {seen.visit.seen_events} events and got on with number {first}"


def _keyed(history: History) -> Iterator[list[Seen]]:
    return (family for family in history.families() if family[0].visit.idempotency_key is not None)


def _succeeded(work: Work) -> bool:
    return work.end is End.FINISHED and work.script.ends_properly


def _forgets(history: History) -> bool:
    """One gateway keeps answers for a day by the clock on the wall, and that clock jumped on; or one of several could
    not renew its lease on a key before it ended."""
    if history.world.shared:
        return keys_may_lapse(history)
    return any(by >= DAY_S for _, by in history.world.wall_jumps)


def _cut_by_a_drain(history: History, work: Work) -> bool:
    """Done, and ended before it could be kept."""
    drains = history.world.drains_at
    ends = None if drains is None else drains + history.world.settings["DRAIN_SECONDS"]
    return ends is not None and work.ended is not None and abs(work.ended - ends) <= TICK_S
