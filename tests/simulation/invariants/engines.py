"""What engines are asked to do, how often, and for how long."""

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from app.engines.scripted import End
from app.errors import EngineError
from app.reliability.stores.answer_keys import FOLLOWED_S
from app.reliability.stores.shared import BEAT_S
from tests.simulation.engines import goes_on_with
from tests.simulation.history import History
from tests.simulation.invariants.base import AT_ONCE_S, TICK_S, asking_s, hedges, invariant, with_records
from tests.simulation.world import BEGAN_S

BUDGET_WINDOW_S = 20.0
"""For so long retries that nobody used may be used later, at most."""


@invariant
def attempts_are_bounded_and_recorded(history: History) -> Iterator[str]:
    works = history.works_by_request()
    most = history.world.settings["MAX_ATTEMPTS"]
    for seen, record in with_records(history):
        tries = len(works[seen.visit.id])
        second = record.attempts if hedges(history) else 0
        if seen.visit.idempotency_key is not None:  # it may have had another's answer, or left before its own was made
            second = most * 2
        if record.replayed or seen.visit.seen_events:
            continue
        if not (record.attempts <= most and record.attempts <= tries <= record.attempts + second):
            yield f"{record.id}: {tries} attempts, {record.attempts} recorded, {most} allowed"


@invariant
def no_replica_is_tried_twice(history: History) -> Iterator[str]:
    """But one that was outrun may have its turn when the other one dies."""
    works = history.works_by_request()
    for seen in history.all_seen:
        names = [name for name, work in works[seen.visit.id] if not (hedges(history) and work.end is End.ABORTED)]
        if len(set(names)) < len(names):
            yield f"{seen.visit.id} was tried at {names}"


@invariant
def a_request_is_at_one_replica_at_a_time(history: History) -> Iterator[str]:
    works = history.works_by_request()
    if hedges(history):
        return
    for seen in history.all_seen:
        for (one, earlier), (other, later) in pairwise(works[seen.visit.id]):
            if earlier.ended is None or earlier.ended > later.began:
                yield f"{seen.visit.id} was at {one} and at {other} in one moment"


@invariant
def second_tries_stay_within_their_budgets(history: History) -> Iterator[str]:
    """Those that begin anew, and come after work was done or refused. To go on with what has begun, and to move away
    from a replica that is dead, an attempt is all that it takes."""
    works = history.works_by_request()
    settings = history.world.settings
    answered = {seen.visit.id: seen.answered for seen in history.all_seen}
    firsts = sum(bool(tries) for tries in works.values())
    more = -firsts
    for request, tries in works.items():
        begun = math.inf if (first := answered.get(request)) is None else first
        anew = [work for _, work in tries if work.began <= begun and not goes_on_with(work.call)]
        more += len(anew)
        if settings["RETRY_BUDGET"]:
            more -= sum(isinstance(work.error, EngineError) and not work.error.draws_on_budget for work in anew[:-1])
    seconds = history.ended - BEGAN_S + BUDGET_WINDOW_S
    retries = settings["RETRY_BUDGET"] * firsts + seconds if settings["RETRY_BUDGET"] else 0
    most = retries + settings["HEDGE_SHARE"] * firsts + (1 if hedges(history) else 0)
    if more > most:
        yield f"{more} second tries were made, and {most:.1f} allowed"


@invariant
def what_is_tried_once_the_client_has_read_goes_on_from_there(history: History) -> Iterator[str]:
    """Whoever reads a keyed answer may be behind it."""
    works = history.works_by_request()
    for seen in history.all_seen:
        for name, work in works[seen.visit.id]:
            if seen.answered is None or work.began <= seen.answered:
                continue
            text = goes_on_with(work.call) or ""
            keyed = seen.visit.idempotency_key is not None
            had, has = seen.read_by(work.began, before=True), seen.read_by(work.began)
            begun = any(at <= work.began for at, _ in seen.blocks)
            if not text.startswith(had) or not (keyed or (begun and has.startswith(text))):
                yield f"{name} was asked to go on after {text[-100:]!r}, when {seen.visit.id} had {had[-100:]!r}"


def _as_begun(body: dict[str, Any]) -> dict[str, Any]:
    """Without what asks for the rest of an answer."""
    if not body.get("continue_final_message"):
        return body
    *messages, said = body["messages"]
    return body | {"messages": messages, "max_tokens": body["max_tokens"] + len(said["content"].split())}


@invariant
def work_ends_with_its_request(history: History) -> Iterator[str]:
    """A client that is gone, an answer that is over: the engine is free in the same moment. With a key it goes on for
    others, and for a while for nobody; word that somebody follows through Redis counts a while longer."""
    works = history.works_by_answer()
    ended = {record.id: record.ended for record in history.records}
    followed_s = FOLLOWED_S + BEAT_S + asking_s(history) if history.world.shared else 0.0
    grace_s = history.world.settings["IDEMPOTENCY_GRACE"] + TICK_S + followed_s
    for family in history.families():
        overs = [min(ended.get(seen.visit.id, math.inf), seen.left or math.inf) for seen in family]
        over = max(overs) + AT_ONCE_S + (grace_s if family[0].visit.idempotency_key is not None else 0.0)
        for name, work in works[family[0].visit.id]:
            if work.ended is None or work.ended > over:
                yield f"{name} worked on {work.call.id} until {work.ended}, which was over at {over:.3f}"


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
            got = _as_begun(json.loads(work.call.body))
            if {field: got.get(field) for field in sent if field != "stream_options"} != {
                field: value for field, value in sent.items() if field != "stream_options"
            }:
                yield f"{name} got another request than {seen.visit.id} had sent: {work.call.body[-300:]!r}"
