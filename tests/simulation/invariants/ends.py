"""How each request ends, and what stays behind."""

from collections import Counter
from collections.abc import Iterator

from app.engines.scripted import End
from app.errors import Outcome
from app.telemetry.record import Record
from app.wire.errors import ERRORS
from tests.simulation.history import History, Seen
from tests.simulation.invariants.base import AT_ONCE_S, code_of, invariant, with_records

NARROWED = {
    "displaced": "queue_full",
    "circuit_open": "no_replica",
    "request_rate": "rate_limit_exceeded",
    "token_quota": "rate_limit_exceeded",
    "concurrency": "rate_limit_exceeded",
    "nothing_to_resume": "idempotency_not_replayable",
    "invalid_header": "invalid_value",
}
"""Codes that say more than the error table's."""


@invariant
def every_request_ends(history: History) -> Iterator[str]:
    if history.stuck:
        yield history.stuck
    for seen in history.all_seen:
        if seen.returned is None:
            yield f"{seen.visit.id} never ended"
        if seen.raised and seen.killed is None:
            yield f"{seen.visit.id} ended with {seen.raised}"


@invariant
def each_request_has_exactly_one_outcome(history: History) -> Iterator[str]:
    came = [seen.visit.id for seen in history.all_seen]
    for what, told in (("began", history.begun), ("ended", [record.id for record in history.records])):
        counts = Counter(told)
        for name in came:
            if counts.pop(name, 0) != 1:
                yield f"{name} {what} {Counter(told)[name]} times, as telemetry was told"
        for name in counts:
            yield f"{name} {what}, and nobody had sent it"


@invariant
def the_client_saw_what_was_recorded(history: History) -> Iterator[str]:
    for seen, record in with_records(history):
        if seen.left is not None:
            overtaken = record.outcome is not Outcome.CLIENT_GONE and record.ended > seen.left + AT_ONCE_S
            if overtaken or (record.outcome is Outcome.OK and seen.killed is not None and not seen.is_done):
                yield f"{record.id} left before its end, and is recorded as {record.outcome}"
        elif seen.ended is None:
            yield f"{record.id} stayed, and its answer has no end; recorded as {record.outcome}"
        elif seen.status != record.status:
            yield f"{record.id} got {seen.status}, and {record.status} is recorded"
        elif record.outcome not in _outcomes(seen):
            yield f"{record.id} got {seen.status} {code_of(seen) or ''}, and is recorded as {record.outcome}"


def _outcomes(seen: Seen) -> set[Outcome]:
    """What may be recorded for an answer that came whole."""
    code = code_of(seen)
    if code is None:
        return {Outcome.OK} if seen.status == 200 else set()
    by_code = {kind.outcome for kind, row in ERRORS.items() if row.code == NARROWED.get(code, code)}
    if seen.is_stream and Outcome.UPSTREAM_FAILED in by_code:
        return {Outcome.INTERRUPTED}
    return by_code


@invariant
def only_those_who_left_or_stalled_are_recorded_as_gone(history: History) -> Iterator[str]:
    limit_s = history.world.settings["WRITE_TIMEOUT"]
    for seen, record in with_records(history):
        stalled = seen.longest_block_s >= limit_s - AT_ONCE_S
        if record.outcome is Outcome.CLIENT_GONE and seen.hung_up is None and not stalled:
            yield f"{record.id} is recorded as gone and was there all the time"


@invariant
def an_engine_is_blamed_only_where_one_failed(history: History) -> Iterator[str]:
    works = history.works_by_answer()
    for seen, record in with_records(history):
        if record.outcome in (Outcome.UPSTREAM_FAILED, Outcome.INTERRUPTED):
            tries = works[seen.visit.id]
            well = all(work.end is End.FINISHED and work.script.ends_properly for _, work in tries)
            if well and record.error != "NoReplica" and not _may_have_lost_its_maker(history, seen, record):
                yield f"{record.id} is recorded as {record.outcome}, and its engines did all that they were asked"
            if record.error == "NoReplica" and history.world.calm:
                yield f"{record.id} found no replica, and all of them were well"


def _may_have_lost_its_maker(history: History, seen: Seen, record: Record) -> bool:
    """It read an answer through Redis, and the gateway that makes it went, or could not say that it still does."""
    world = history.world
    may_go = world.shared and (len(world.store_faults) > 0 or world.drains_at is not None)
    return may_go and seen.visit.idempotency_key is not None and record.error == "EngineBroken"


@invariant
def where_nothing_is_wrong_everybody_gets_an_answer_or_an_honest_refusal(history: History) -> Iterator[str]:
    """Liveness: a refusal there has to do with how many come, or how little time they have."""
    honest = {Outcome.OK, Outcome.QUEUE_FULL, Outcome.DEADLINE, Outcome.RATE_LIMITED, Outcome.DRAINING}
    theirs = (400, 401, 408, 409, 422)
    of_keys = {"NotReplayable", *(["StoreDown"] if history.world.store_faults else [])}
    if history.world.calm:
        for seen, record in with_records(history):
            there = seen.hung_up is None and seen.cut_off is None and seen.killed is None
            if seen.visit.idempotency_key is not None and record.error in of_keys:
                continue
            if there and seen.status not in theirs and record.outcome not in {*honest, Outcome.CLIENT_GONE}:
                yield f"{record.id} is recorded as {record.outcome} {record.error} while all was well"


@invariant
def all_comes_back_by_itself(history: History) -> Iterator[str]:
    for seen in history.afterwards:
        if seen.status != 200:
            yield f"{seen.visit.id} came when every engine was well again, and got {seen.status} {code_of(seen)}"


@invariant
def nothing_is_a_defect_of_ours(history: History) -> Iterator[str]:
    yield from history.logged
    for seen in history.all_seen:
        if seen.status == 500:
            yield f"{seen.visit.id} got a 500"


@invariant
def all_is_given_back(history: History) -> Iterator[str]:
    for what, count in history.left.held.items():
        yield f"{count} {what} left when all was over"
    for task in history.left.tasks:
        yield f"a task is left when all was over: {task}"
