"""Deadlines, and readers that keep everybody waiting."""

from collections.abc import Iterator

from tests.simulation.history import History, Seen
from tests.simulation.invariants.base import AT_ONCE_S, TICK_S, asking_s, invariant, limits_s


@invariant
def no_answer_begins_after_its_deadline(history: History) -> Iterator[str]:
    for seen in history.all_seen:
        if seen.status == 200 and seen.answered is not None:
            due = history.world.expires(seen.visit, seen.sent) + TICK_S + _to_keep_s(history, seen)
            if seen.answered > due + AT_ONCE_S:
                yield f"{seen.visit.id} got its answer's head at {seen.answered:.3f}, and was due at {due:.3f}"


@invariant
def no_request_lasts_longer_than_it_may(history: History) -> Iterator[str]:
    """Its deadline; where the body came after that, its body; and whatever its client let the gateway wait."""
    for seen in history.all_seen:
        due = history.world.expires(seen.visit, seen.sent)
        due = max(due, seen.body_sent or seen.sent + history.world.settings["BODY_TIMEOUT"])
        if history.world.drains_at is not None and seen.visit.gateway == 0 and not _may_follow(history, seen):
            drained = history.world.drains_at + history.world.settings["DRAIN_SECONDS"]
            asked = (seen.body_sent or due) + limits_s(history, seen.visit.tenant or "")
            due = min(due, max(drained, asked))
        due += _to_keep_s(history, seen)
        if seen.returned is not None and seen.returned - seen.blocked_s > due + TICK_S + AT_ONCE_S:
            yield f"{seen.visit.id} was with the gateway until {seen.returned:.3f}, and was due at {due:.3f}"


def _may_follow(history: History, seen: Seen) -> bool:
    """What it reads comes through Redis, from another gateway, which does not drain; or does not come."""
    return history.world.shared and seen.visit.idempotency_key is not None


def _to_keep_s(history: History, seen: Seen) -> float:
    """An answer that was made in time is not lost because Redis takes a while to keep it."""
    return asking_s(history) if seen.visit.idempotency_key is not None else 0.0


@invariant
def a_stalled_reader_is_cut_off(history: History) -> Iterator[str]:
    most = history.world.settings["WRITE_TIMEOUT"] + TICK_S + AT_ONCE_S
    for seen in history.all_seen:
        if seen.longest_block_s > most:
            yield f"{seen.visit.id} let the gateway wait for {seen.longest_block_s:.3f} s"
