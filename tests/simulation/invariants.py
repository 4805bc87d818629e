"""What must be true of every history, one function each. A function tells every case in which it is not."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from app.engines.scripted import End, Work
from app.errors import EngineError, Outcome
from app.reliability.ledger import MOST_TOKENS
from app.telemetry.base import CircuitChanged
from app.telemetry.record import Record
from app.wire.errors import ERRORS
from tests.simulation.history import History, Seen
from tests.simulation.world import BEGAN_S

TICK_S = 0.05
"""Between two sweeps of the watch: time limits are late by so much at most."""

AT_ONCE_S = 1e-6
"""In virtual time nothing takes time but waiting."""

BUDGET_WINDOW_S = 20.0
"""For so long retries that nobody used may be used later, at most."""

UNTIMED = ("engine_busy", "draining")
"""Refusals that may leave open how long they hold: an engine's own, and one that came in the middle of the work."""

NARROWED = {"circuit_open": "no_replica"}
"""Codes that say more than the error table's."""

Invariant = Callable[[History], Iterator[str]]
INVARIANTS: list[Invariant] = []


@dataclass(frozen=True)
class Violation:
    invariant: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.message}"


def check(history: History) -> list[Violation]:
    return [Violation(each.__name__, message) for each in INVARIANTS for message in each(history)]


def invariant(function: Invariant) -> Invariant:
    INVARIANTS.append(function)
    return function


# --- every request has one end ------------------------------------------------------------------------------------


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
    for seen, record in _with_records(history):
        if seen.left is not None:
            overtaken = record.outcome is not Outcome.CLIENT_GONE and record.ended > seen.left + AT_ONCE_S
            if overtaken or (record.outcome is Outcome.OK and seen.killed is not None):
                yield f"{record.id} left before its end, and is recorded as {record.outcome}"
        elif seen.ended is None:
            yield f"{record.id} stayed, and its answer has no end; recorded as {record.outcome}"
        elif seen.status != record.status:
            yield f"{record.id} got {seen.status}, and {record.status} is recorded"
        elif record.outcome not in _outcomes(seen):
            yield f"{record.id} got {seen.status} {_code(seen) or ''}, and is recorded as {record.outcome}"


def _outcomes(seen: Seen) -> set[Outcome]:
    """What may be recorded for an answer that came whole."""
    code = _code(seen)
    if code is None:
        return {Outcome.OK} if seen.status == 200 else set()
    by_code = {kind.outcome for kind, row in ERRORS.items() if row.code == NARROWED.get(code, code)}
    if seen.is_stream and Outcome.UPSTREAM_FAILED in by_code:
        return {Outcome.INTERRUPTED}
    return by_code


def _code(seen: Seen) -> str | None:
    error = seen.error
    return error["code"] if error is not None else None


@invariant
def only_those_who_left_or_stalled_are_recorded_as_gone(history: History) -> Iterator[str]:
    limit_s = history.world.settings["WRITE_TIMEOUT"]
    for seen, record in _with_records(history):
        stalled = seen.longest_block_s >= limit_s - AT_ONCE_S
        if record.outcome is Outcome.CLIENT_GONE and seen.hung_up is None and not stalled:
            yield f"{record.id} is recorded as gone and was there all the time"


@invariant
def an_engine_is_blamed_only_where_one_failed(history: History) -> Iterator[str]:
    works = history.works_by_request()
    for seen, record in _with_records(history):
        if record.outcome in (Outcome.UPSTREAM_FAILED, Outcome.INTERRUPTED):
            tries = works[seen.visit.id]
            well = all(work.end is End.FINISHED and work.script.ends_properly for _, work in tries)
            if well and record.error != "NoReplica":
                yield f"{record.id} is recorded as {record.outcome}, and its engines did all that they were asked"
            if record.error == "NoReplica" and history.world.calm:
                yield f"{record.id} found no replica, and all of them were well"


@invariant
def where_nothing_is_wrong_everybody_gets_an_answer_or_an_honest_refusal(history: History) -> Iterator[str]:
    """Liveness: a refusal there has to do with how many come, or how little time they have."""
    honest = {Outcome.OK, Outcome.QUEUE_FULL, Outcome.DEADLINE, Outcome.RATE_LIMITED, Outcome.DRAINING}
    if history.world.calm:
        for seen, record in _with_records(history):
            there = seen.hung_up is None and seen.cut_off is None and seen.killed is None
            if there and seen.status != 408 and record.outcome not in {*honest, Outcome.CLIENT_GONE}:
                yield f"{record.id} is recorded as {record.outcome} {record.error} while all was well"


@invariant
def all_comes_back_by_itself(history: History) -> Iterator[str]:
    for seen in history.afterwards:
        if seen.status != 200:
            yield f"{seen.visit.id} came when every engine was well again, and got {seen.status} {_code(seen)}"


@invariant
def nothing_is_a_defect_of_ours(history: History) -> Iterator[str]:
    yield from history.logged
    for seen in history.all_seen:
        if seen.status == 500:
            yield f"{seen.visit.id} got a 500"


# --- answers ------------------------------------------------------------------------------------------------------


@invariant
def an_answer_begins_once_and_nothing_follows_its_end(history: History) -> Iterator[str]:
    for seen in history.all_seen:
        if seen.out_of_turn:
            yield f"{seen.visit.id} was sent {', '.join(seen.out_of_turn)} out of turn"


@invariant
def a_stream_ends_with_done_or_with_an_error_and_nothing_follows(history: History) -> Iterator[str]:
    for seen in _streams(history):
        last = [event == "[DONE]" or "error" in event for event in seen.events]
        if any(last[:-1]):
            yield f"{seen.visit.id}: the stream goes on after its end"
        if seen.ended is not None and not any(last):
            yield f"{seen.visit.id}: the stream ends with neither [DONE] nor an error"


@invariant
def blocks_are_whole_events(history: History) -> Iterator[str]:
    for seen in _streams(history):
        for _, block in seen.blocks:
            if not block.startswith(b"data: ") or not block.endswith(b"\n\n"):
                yield f"{seen.visit.id} was sent a torn event: {block!r}"


@invariant
def a_text_is_what_one_engine_made(history: History) -> Iterator[str]:
    """Whole if the answer is; else from its beginning as far as it came. Never mixed, never doubled."""
    works = history.works_by_request()
    for seen in history.all_seen:
        if seen.status != 200 or not seen.blocks:
            continue
        whole = seen.is_done if seen.is_stream else seen.ended is not None
        made = [work.text for _, work in works[seen.visit.id]]
        if not any(text == seen.text if whole else text.startswith(seen.text) for text in made):
            yield f"{seen.visit.id} read {seen.text!r}, and the engines had made {made}"


@invariant
def usage_is_shown_to_those_who_asked(history: History) -> Iterator[str]:
    for seen in _streams(history):
        if not seen.visit.shows_usage and b'"usage"' in seen.body:
            yield f"{seen.visit.id} did not ask for its usage and was sent it"


@invariant
def what_is_recorded_as_used_is_what_the_engine_told(history: History) -> Iterator[str]:
    works = history.works_by_request()
    for seen, record in _with_records(history):
        if record.usage is not None:
            counts = (record.usage.prompt_tokens, record.usage.completion_tokens, record.usage.cached_tokens)
            if not all(0 <= count <= 2**53 for count in counts):
                yield f"{record.id}: {record.usage} cannot be true, and is recorded"
        for work in [work for name, work in works[seen.visit.id] if name == record.replica][-1:]:
            if record.outcome is Outcome.OK and work.script.lies is None and record.usage != work.told and not (work.told is None and record.guessed):
                yield f"{record.id}: the engine told {work.told}, and {record.usage} is recorded"


# --- engines ------------------------------------------------------------------------------------------------------


@invariant
def attempts_are_bounded_and_recorded(history: History) -> Iterator[str]:
    works = history.works_by_request()
    most = history.world.settings["MAX_ATTEMPTS"]
    for seen, record in _with_records(history):
        tries = len(works[seen.visit.id])
        second = record.attempts if _hedges(history) else 0
        if not (record.attempts <= most and record.attempts <= tries <= record.attempts + second):
            yield f"{record.id}: {tries} attempts, {record.attempts} recorded, {most} allowed"


@invariant
def no_replica_is_tried_twice(history: History) -> Iterator[str]:
    works = history.works_by_request()
    for seen in history.all_seen:
        names = [name for name, _ in works[seen.visit.id]]
        if len(set(names)) < len(names):
            yield f"{seen.visit.id} was tried at {names}"


@invariant
def a_request_is_at_one_replica_at_a_time(history: History) -> Iterator[str]:
    works = history.works_by_request()
    if _hedges(history):
        return
    for seen in history.all_seen:
        for (one, earlier), (other, later) in pairwise(works[seen.visit.id]):
            if earlier.ended is None or earlier.ended > later.began:
                yield f"{seen.visit.id} was at {one} and at {other} in one moment"


def _hedges(history: History) -> bool:
    return bool(history.world.settings["HEDGE_SHARE"])


@invariant
def second_tries_stay_within_their_budgets(history: History) -> Iterator[str]:
    works = history.works_by_request()
    settings = history.world.settings
    firsts = sum(bool(tries) for tries in works.values())
    more = sum(len(tries) - 1 for tries in works.values() if tries)
    seconds = history.ended - BEGAN_S + BUDGET_WINDOW_S
    retries = settings["RETRY_BUDGET"] * firsts + seconds if settings["RETRY_BUDGET"] else 0
    most = retries + settings["HEDGE_SHARE"] * firsts + (1 if _hedges(history) else 0)
    if more > most:
        yield f"{more} second tries were made, and {most:.1f} allowed"


@invariant
def nothing_is_tried_again_once_the_client_has_read(history: History) -> Iterator[str]:
    works = history.works_by_request()
    for seen in history.all_seen:
        tries = works[seen.visit.id]
        if seen.answered is not None and tries and tries[-1][1].began > seen.answered:
            yield f"{seen.visit.id} was tried again after its answer had begun"


@invariant
def work_ends_with_its_request(history: History) -> Iterator[str]:
    """A client that is gone, an answer that is over: the engine is free in the same moment."""
    works = history.works_by_request()
    for seen, record in _with_records(history):
        gone = seen.left if seen.left is not None else math.inf
        over = min(record.ended, gone) + AT_ONCE_S
        for name, work in works[seen.visit.id]:
            if work.ended is None or work.ended > over:
                yield f"{name} worked on {seen.visit.id} until {work.ended}, which was over at {over:.3f}"


@invariant
def no_replica_gets_a_call_for_a_model_that_it_does_not_serve(history: History) -> Iterator[str]:
    serves = {plan.name: plan.models for plan in history.world.engines}
    for name, works in history.works.items():
        for work in works:
            if work.call.model not in serves[name]:
                yield f"{name} was asked for {work.call.model}"


@invariant
def what_reaches_an_engine_is_what_the_client_sent(history: History) -> Iterator[str]:
    works = history.works_by_request()
    for seen in history.all_seen:
        sent = json.loads(seen.visit.body())
        for name, work in works[seen.visit.id]:
            got = json.loads(work.call.body)
            if {field: got.get(field) for field in sent if field != "stream_options"} != {
                field: value for field, value in sent.items() if field != "stream_options"
            }:
                yield f"{name} got another request than {seen.visit.id} had sent: {work.call.body!r}"


# --- slots and lines ----------------------------------------------------------------------------------------------


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
    for seen, record in _with_records(history):
        if record.error in ("QueueFull", "WouldMissDeadline"):
            for name, work in works[seen.visit.id]:
                if work.error is None:
                    yield f"{record.id} was refused with {record.error}, and {name} had worked for it"


@invariant
def a_full_line_is_said_at_once(history: History) -> Iterator[str]:
    for seen, record in _with_records(history):
        if record.error == "QueueFull" and seen.returned is not None:
            late = seen.returned - seen.blocked_s - (seen.body_sent or seen.sent)
            if late > AT_ONCE_S:
                yield f"{record.id} heard after {late:.3f} s that the line is full"


@invariant
def who_is_sent_away_for_a_while_is_told_for_how_long(history: History) -> Iterator[str]:
    for seen in history.all_seen:
        if seen.status == 503 and "x-gllm-reason" not in seen.headers:
            yield f"{seen.visit.id} got a 503 without a reason"
        waits = seen.headers.get("retry-after", "absent")
        if seen.status in (429, 503) and not waits.isdecimal() and _code(seen) not in UNTIMED:
            yield f"{seen.visit.id} got {seen.status} {_code(seen)}, retry-after {waits}"


# --- circuits -----------------------------------------------------------------------------------------------------


@invariant
def a_circuit_opens_only_after_failures_in_a_row(history: History) -> Iterator[str]:
    """Backpressure is none, and neither is a client that leaves."""
    most = history.world.settings["CIRCUIT_FAILURES"]
    for name, periods in _circuits(history).items():
        failed = [work.ended for work in history.works[name] if _is_blamed(work)]
        for state, since, _ in periods:
            before = sum(ended is not None and ended <= since + AT_ONCE_S for ended in failed)
            if state == "open" and before < most:
                yield f"the circuit of {name} opened at {since:.3f} after {before} failures in all"


def _is_blamed(work: Work) -> bool:
    """It failed; or it spoke what a gateway cannot read, and does not know so itself."""
    return (isinstance(work.error, EngineError) and work.error.blames_engine) or not work.script.ends_properly


@invariant
def an_open_circuit_lets_nobody_through(history: History) -> Iterator[str]:
    for name, periods in _circuits(history).items():
        for state, since, until in periods:
            for work in history.works[name] if state == "open" else []:
                if since + AT_ONCE_S < work.began < until - AT_ONCE_S:
                    yield f"{name} was asked for {work.call.id} at {work.began:.3f}, its circuit was open"


@invariant
def a_half_open_circuit_lets_one_try_at_a_time(history: History) -> Iterator[str]:
    for name, periods in _circuits(history).items():
        for state, since, until in periods:
            if state == "half_open":
                trials = [work for work in history.works[name] if since - AT_ONCE_S <= work.began < until - AT_ONCE_S]
                for one, other in pairwise(trials):
                    if one.ended is None or one.ended > other.began + AT_ONCE_S:
                        yield f"{one.call.id} and {other.call.id} tried {name} at once"


def _circuits(history: History) -> dict[str, list[tuple[str, float, float]]]:
    """By replica: in which state its circuit was, since when, and until when."""
    periods: dict[str, list[tuple[str, float, float]]] = {name: [] for name in history.works}
    for at, event in history.events:
        if isinstance(event, CircuitChanged):
            known = periods[event.replica]
            if known:
                known[-1] = (*known[-1][:2], at)
            known.append((event.state, at, history.ended))
    return periods


# --- the account --------------------------------------------------------------------------------------------------


@invariant
def the_ledger_has_what_was_recorded(history: History) -> Iterator[str]:
    """Each request that an engine worked for, once, with all that it used."""
    used = [record.usage for record in history.records if record.usage is not None]
    expected = (
        len(used),
        sum(min(usage.prompt_tokens, MOST_TOKENS) for usage in used),
        sum(min(usage.completion_tokens, MOST_TOKENS) for usage in used),
    )
    if history.charged != expected:
        yield f"the ledger has {history.charged} requests, prompt and completion tokens, and {expected} are recorded"


# --- time ---------------------------------------------------------------------------------------------------------


@invariant
def no_answer_begins_after_its_deadline(history: History) -> Iterator[str]:
    for seen in history.all_seen:
        if seen.status == 200 and seen.answered is not None:
            due = history.world.expires(seen.visit, seen.sent) + TICK_S
            if seen.answered > due + AT_ONCE_S:
                yield f"{seen.visit.id} got its answer's head at {seen.answered:.3f}, and was due at {due:.3f}"


@invariant
def no_request_lasts_longer_than_it_may(history: History) -> Iterator[str]:
    """Its deadline; where the body came after that, its body; and whatever its client let the gateway wait."""
    for seen in history.all_seen:
        due = history.world.expires(seen.visit, seen.sent)
        due = max(due, seen.body_sent or seen.sent + history.world.settings["BODY_TIMEOUT"])
        if history.world.drains_at is not None:
            drained = history.world.drains_at + history.world.settings["DRAIN_SECONDS"]
            due = min(due, max(drained, seen.body_sent or due))
        if seen.returned is not None and seen.returned - seen.blocked_s > due + TICK_S + AT_ONCE_S:
            yield f"{seen.visit.id} was with the gateway until {seen.returned:.3f}, and was due at {due:.3f}"


@invariant
def a_stalled_reader_is_cut_off(history: History) -> Iterator[str]:
    most = history.world.settings["WRITE_TIMEOUT"] + TICK_S + AT_ONCE_S
    for seen in history.all_seen:
        if seen.longest_block_s > most:
            yield f"{seen.visit.id} let the gateway wait for {seen.longest_block_s:.3f} s"


# --- nothing is kept ----------------------------------------------------------------------------------------------


@invariant
def all_is_given_back(history: History) -> Iterator[str]:
    for what, count in history.left.held.items():
        yield f"{count} {what} left when all was over"
    for task in history.left.tasks:
        yield f"a task is left when all was over: {task}"


def _with_records(history: History) -> Iterator[tuple[Seen, Record]]:
    records = {record.id: record for record in history.records}
    for seen in history.all_seen:
        if seen.visit.id in records:
            yield seen, records[seen.visit.id]


def _streams(history: History) -> Iterator[Seen]:
    return (seen for seen in history.all_seen if seen.is_stream)
