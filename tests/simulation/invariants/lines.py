"""Slots, and the lines of those who wait for one."""

from collections.abc import Iterator

from tests.simulation.history import History
from tests.simulation.invariants.base import AT_ONCE_S, asking_s, code_of, invariant, limits_s, with_records

UNTIMED = ("request_larger_than_limit",)
"""Refusals that may leave open how long they hold: one that holds for ever."""


@invariant
def no_replica_has_more_than_its_slots(history: History) -> Iterator[str]:
    most = history.world.settings["MAX_CONCURRENT_REQUESTS"]
    if not history.world.settings["ADAPTIVE_CONCURRENCY"]:
        for name, running in history.peaks.running.items():
            if running > most:
                yield f"{name} had {running} requests at once, and has {most} slots"


@invariant
def no_line_is_longer_than_its_places(history: History) -> Iterator[str]:
    settings = history.world.settings
    if settings["ENABLE_BACKPRESSURE"]:
        for what, peaks, most in (
            ("requests", history.peaks.waiting, settings["QUEUE_CAPACITY"]),
            ("prompt tokens", history.peaks.tokens, settings["QUEUE_CAPACITY_TOKENS"]),
        ):
            for model, peak in peaks.items():
                if peak > most:
                    yield f"{peak} {what} waited for {model}, and there is room for {most}"


@invariant
def no_slot_idles_while_somebody_waits(history: History) -> Iterator[str]:
    for model, idle_s in history.peaks.idle_s.items():
        if idle_s > AT_ONCE_S:
            yield f"for {idle_s:.3f} s somebody waited for {model} while a replica had room"


@invariant
def a_refusal_costs_no_engine_anything(history: History) -> Iterator[str]:
    """It may have failed elsewhere before it had to wait."""
    works = history.works_by_request()
    for seen, record in with_records(history):
        if record.error in ("QueueFull", "WouldMissDeadline"):
            for name, work in works[seen.visit.id]:
                if work.error is None:
                    yield f"{record.id} was refused with {record.error}, and {name} had worked for it"


@invariant
def a_full_line_is_said_at_once(history: History) -> Iterator[str]:
    """Who had a place and had to yield it hears something else. With a key it may have been Redis's turn three times:
    for the key, for the limits, and to let go of the key."""
    for seen, record in with_records(history):
        if record.error == "QueueFull" and code_of(seen) == "queue_full" and seen.returned is not None:
            late = seen.returned - seen.blocked_s - (seen.body_sent or seen.sent)
            if late > 2 * asking_s(history) + limits_s(history, record.tenant) + AT_ONCE_S:
                yield f"{record.id} heard after {late:.3f} s that the line is full"


@invariant
def who_is_sent_away_for_a_while_is_told_for_how_long(history: History) -> Iterator[str]:
    for seen in history.all_seen:
        if seen.status == 503 and "x-gllm-reason" not in seen.headers:
            yield f"{seen.visit.id} got a 503 without a reason"
        waits = seen.headers.get("retry-after", "absent")
        if (
            seen.status in (429, 503)
            and seen.ended is not None
            and not waits.isdecimal()
            and code_of(seen) not in UNTIMED
        ):
            yield f"{seen.visit.id} got {seen.status} {code_of(seen)}, retry-after {waits}"
