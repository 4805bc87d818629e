"""The checker checked: for each invariant a history in which it is broken, and a check that sees it.

A check that cannot fail would let everything pass, and nobody would know.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import pytest

from app.engines.scripted import End, Script, Work
from app.errors import Outcome
from app.generation import Call, Route, Usage
from app.telemetry.base import CircuitChanged, StoreChanged, StreamTakenOver
from app.tenant import Tenant
from tests.simulation.draw import SETTINGS, UNSEEN, WITH_REDIS
from tests.simulation.history import History, Seen
from tests.simulation.invariants import INVARIANTS, check
from tests.simulation.simulate import simulate
from tests.simulation.world import (
    BEGAN_S,
    EnginePlan,
    Fault,
    Manner,
    StoreFault,
    StoreTrouble,
    TenantPlan,
    Trouble,
    Visit,
    World,
)

STREAM, WHOLE, GONE, RETRIED = range(4)

PLAIN = {"HEDGE_SHARE": 0.0, "ADAPTIVE_CONCURRENCY": False, "ENABLE_BACKPRESSURE": True}

NARROW = {"MAX_CONCURRENT_REQUESTS": 1}
TENANT = TenantPlan("tenant", 1.0, "normal", None, None, None)

WORLD = World(
    seed=0,
    settings=UNSEEN | {name: choices[-1] for name, choices in SETTINGS.items()} | PLAIN,
    engines=tuple(EnginePlan(f"engine-{index}", ("model-0",), 4, 4, 0.01, 0.01, 1) for index in range(2)),
    visits=(
        Visit("stream", BEGAN_S, "model-0", stream=True, tokens=3),
        Visit("whole", BEGAN_S + 1, "model-0", stream=False, tokens=3),
        Visit("gone", BEGAN_S + 2, "model-0", True, 30, manner=Manner.HANGS_UP_AT_BLOCK, leaves_at_block=2),
        Visit("retried", BEGAN_S + 3, "model-0", stream=True, tokens=3),
    ),
    faults=(Fault("engine-1", Trouble.SICK, BEGAN_S + 2.9, BEGAN_S + 3.5, share=1.0),),
)


DYING, LIVING = range(2)

DYING_WORLD = replace(
    WORLD,
    settings=WORLD.settings | {"EXACT_USAGE": True, "TAKEOVER": True},
    visits=tuple(
        Visit(name, BEGAN_S, "model-0", stream=True, tokens=30, shows_usage=True) for name in ("dying", "living")
    ),
    faults=(Fault("engine-0", Trouble.DEAD, BEGAN_S + 0.1, BEGAN_S + 0.2, share=1.0),),
)


KEYED, ELSEWHERE, NOTICES, KNOWS, KEYLESS = range(5)

SHARED_WORLD = replace(
    WORLD,
    settings=WORLD.settings | {name: choices[0] for name, choices in WITH_REDIS.items()},
    gateways=2,
    visits=(
        Visit("keyed", BEGAN_S, "model-0", stream=False, tokens=3, idempotency_key="key"),
        Visit("elsewhere", BEGAN_S + 1, "model-0", stream=False, tokens=3, idempotency_key="key", gateway=1),
        Visit("notices", BEGAN_S + 2.2, "model-0", stream=False, tokens=3, idempotency_key="a"),
        Visit("knows", BEGAN_S + 2.5, "model-0", stream=False, tokens=3, idempotency_key="b"),
        Visit("keyless", BEGAN_S + 2.6, "model-0", stream=False, tokens=3),
    ),
    faults=(),
    store_faults=(StoreFault(StoreTrouble.LOST, BEGAN_S + 2, BEGAN_S + 3, share=1.0),),
)


@cache
def _as_it_was() -> History:
    return simulate(WORLD)


@cache
def _as_it_was_with_a_death() -> History:
    return simulate(DYING_WORLD)


@cache
def _as_it_was_with_redis() -> History:
    return simulate(SHARED_WORLD)


@pytest.fixture
def history() -> History:
    return copy.deepcopy(_as_it_was())


@pytest.fixture
def dying() -> History:
    """Of two streams, one of which is taken over in its middle."""
    return copy.deepcopy(_as_it_was_with_a_death())


@pytest.fixture
def shared() -> History:
    """Of two gateways and their Redis, of which nothing is heard for a while."""
    return copy.deepcopy(_as_it_was_with_redis())


def _seen(history: History, which: int) -> Seen:
    return history.seen[which]


def _drained_before(history: History, *, lasting_s: float) -> None:
    """Its gateway's patience had ended when a stream began, and it lasted all the same."""
    history.world = replace(history.world, drains_at=BEGAN_S - 6)
    _seen(history, STREAM).returned = BEGAN_S + lasting_s


def _works(history: History, which: int) -> list[tuple[str, Work]]:
    return history.works_by_request()[history.seen[which].visit.id]


def _work(history: History, which: int) -> Work:
    return _works(history, which)[-1][1]


def _record(history: History, which: int, **fields: object) -> None:
    """What telemetry was told of it is something else."""
    for record in history.records:
        if record.id == history.seen[which].visit.id:
            for name, value in fields.items():
                setattr(record, name, value)


def _says(history: History, which: int, *events: bytes) -> None:
    seen = history.seen[which]
    seen.blocks = [(seen.answered or 0.0, b"data: %b\n\n" % event) for event in events]


def _failed_while_all_was_well(history: History) -> None:
    history.world = replace(history.world, faults=())
    _record(history, STREAM, outcome=Outcome.UPSTREAM_FAILED)


def _circuit(history: History, name: str, *states: tuple[str, float]) -> None:
    history.events = [(BEGAN_S + at, 0, CircuitChanged(name, state)) for state, at in states]


def _worked_while_open(history: History) -> None:
    name, work = _works(history, STREAM)[0]
    _circuit(history, name, ("open", -0.5), ("half_open", 0.5))
    assert work.began == pytest.approx(BEGAN_S)


def _two_tried_at_once(history: History) -> None:
    name, work = _works(history, STREAM)[0]
    history.works[name].insert(0, work)
    _circuit(history, name, ("half_open", -0.5), ("closed", 0.5))


def _told_not_when(history: History) -> None:
    seen = _seen(history, WHOLE)
    seen.status, seen.headers = 503, {"x-gllm-reason": "queue_full"}


def _idled(history: History) -> None:
    for at in (1.0, 1.1):
        history.peaks.idles("model-0", at, True)


def _of_one_tenant(history: History, **limits: Any) -> None:
    """All that happened is theirs, and they may have less."""
    history.world = replace(history.world, tenants=(replace(TENANT, **limits),))
    for works in history.works.values():
        for work in works:
            work.call = msgspec.structs.replace(work.call, tenant=Tenant(TENANT.name))
    for record in history.records:
        record.tenant = TENANT.name


def _two_at_once(history: History) -> None:
    _of_one_tenant(history, concurrent=1)
    _work(history, WHOLE).began = BEGAN_S


def _all_at_once_at_two_gateways(history: History) -> None:
    """One gateway could not reach Redis for a while, and had a part of the limit; another one had all of it."""
    _of_one_tenant(history, concurrent=2)
    for which in (KEYED, KEYLESS):
        _work(history, which).began = BEGAN_S
    works = history.works[_works(history, KEYED)[0][0]]
    for number in range(3):
        works.append(replace(_work(history, KEYED), ended=BEGAN_S + 3 + number))


def _one_tenant_waits_for_all_of_another(history: History) -> None:
    """Sixty of one come and are served one after the other; meanwhile one of the other waits."""
    history.world = replace(
        history.world, tenants=(TENANT, replace(TENANT, name="other")), settings=history.world.settings | NARROW
    )
    pattern, record = _seen(history, WHOLE), history.records[0]
    history.works = {"engine-0": [], "engine-1": []}
    history.seen, history.records = [], []
    for number in range(61):
        tenant = TENANT.name if number < 60 else "other"
        visit = replace(pattern.visit, id=f"v{number}", tenant=tenant)
        history.seen.append(replace(pattern, visit=visit, body_sent=BEGAN_S))
        history.records.append(msgspec.structs.replace(record, id=visit.id, tenant=tenant, queued_s=1.0))
        call = Call(visit.id, Route.CHAT, visit.model, visit.body(), BEGAN_S + 1_000, tenant=Tenant(tenant))
        work = Work(call, Script(), BEGAN_S + 1 + number, BEGAN_S + 2 + number, End.FINISHED)
        history.works["engine-0"].append(work)


def _of_one_key(history: History, *which: int, **fields: Any) -> None:
    """They were asked with one key, and were one request."""
    for index in which:
        seen = _seen(history, index)
        old, visit = seen.visit, history.seen[which[0]].visit
        seen.visit = replace(visit, id=old.id, at=old.at, manner=old.manner, idempotency_key="key", **fields)


def _done_twice(history: History) -> None:
    _of_one_key(history, STREAM, WHOLE)


def _done_at_once(history: History) -> None:
    _of_one_key(history, STREAM, WHOLE)
    _work(history, WHOLE).began = BEGAN_S


def _went_on_elsewhere(history: History) -> None:
    _of_one_key(history, STREAM, seen_events=1)
    seen = _seen(history, STREAM)
    seen.blocks = [(at, b"id: %d\n%b" % (number, block)) for number, (at, block) in enumerate(seen.blocks, 3)]


def _heard_late_that_it_is_full(history: History) -> None:
    seen = _seen(history, WHOLE)
    seen.status, seen.blocks = 503, [(BEGAN_S + 1.5, b'{"error":{"code":"queue_full"}}')]
    _record(history, WHOLE, status=503, outcome=Outcome.QUEUE_FULL, error="QueueFull")


Break = Callable[[History], object]


def _doubled(history: History) -> None:
    seen = _seen(history, STREAM)
    seen.blocks.insert(1, seen.blocks[1])


def _mixed(history: History) -> None:
    blocks = _seen(history, STREAM).blocks
    blocks[2] = (blocks[2][0], blocks[2][1].replace(b"stream.engine", b"other.engine"))


def _cut_short(history: History) -> None:
    del _seen(history, STREAM).blocks[3]


def _tried_again_later(history: History) -> None:
    seen = _seen(history, RETRIED)
    seen.answered = seen.sent


def _at_two_at_once(history: History) -> None:
    first = _works(history, RETRIED)[0][1]
    first.ended = _work(history, RETRIED).began + 1e-9


def _served_elsewhere(history: History) -> None:
    engines = tuple(replace(engine, models=("another",)) for engine in history.world.engines)
    history.world = replace(history.world, engines=engines)


BREAKS: dict[str, list[Break]] = {
    "every_request_ends": [
        lambda history: setattr(history, "stuck", "nothing is left to happen"),
        lambda history: setattr(_seen(history, WHOLE), "returned", None),
        lambda history: setattr(_seen(history, WHOLE), "raised", "KeyError()"),
    ],
    "each_request_has_exactly_one_outcome": [
        lambda history: history.records.pop(),
        lambda history: history.records.append(history.records[0]),
        lambda history: history.begun.append("unheard-of"),
    ],
    "the_client_saw_what_was_recorded": [
        lambda history: _record(history, WHOLE, status=502),
        lambda history: _record(history, WHOLE, outcome=Outcome.INTERRUPTED),
        lambda history: _record(history, GONE, outcome=Outcome.OK, ended=BEGAN_S + 50),
        lambda history: setattr(_seen(history, STREAM), "ended", None),
        lambda history: _says(history, STREAM, b'{"error":{"code":"engine_interrupted"}}'),
    ],
    "only_those_who_left_or_stalled_are_recorded_as_gone": [
        lambda history: _record(history, STREAM, outcome=Outcome.CLIENT_GONE),
    ],
    "an_engine_is_blamed_only_where_one_failed": [
        lambda history: _record(history, STREAM, outcome=Outcome.INTERRUPTED),
    ],
    "where_nothing_is_wrong_everybody_gets_an_answer_or_an_honest_refusal": [
        _failed_while_all_was_well,
    ],
    "all_comes_back_by_itself": [lambda history: setattr(history.afterwards[0], "status", 503)],
    "nothing_is_a_defect_of_ours": [
        lambda history: history.logged.append("request x failed unforeseen"),
        lambda history: setattr(_seen(history, WHOLE), "status", 500),
    ],
    "an_answer_begins_once_and_nothing_follows_its_end": [
        lambda history: _seen(history, STREAM).note({"type": "http.response.body", "body": b"more"}, BEGAN_S + 9),
    ],
    "a_stream_ends_with_done_or_with_an_error_and_nothing_follows": [
        lambda history: _says(history, STREAM, b'{"choices":[]}'),
        lambda history: _says(history, STREAM, b"[DONE]", b'{"choices":[]}'),
        lambda history: _says(history, STREAM, b'{"error":{"code":"x"}}', b"[DONE]"),
    ],
    "blocks_are_whole_events": [
        lambda history: _seen(history, STREAM).blocks.append((BEGAN_S, b"data: [DONE]\n")),
    ],
    "a_text_is_what_one_engine_made": [_doubled, _mixed, _cut_short],
    "usage_is_shown_to_those_who_asked": [
        lambda history: _says(history, STREAM, b'{"choices":[],"usage":{}}', b"[DONE]"),
    ],
    "what_is_recorded_as_used_is_what_the_engine_told": [
        lambda history: _record(history, STREAM, usage=None),
        lambda history: _record(history, STREAM, usage=Usage(4, 4)),
        lambda history: _record(history, GONE, usage=Usage(-1, 0)),
        lambda history: _record(history, STREAM, replayed=True),
    ],
    "attempts_are_bounded_and_recorded": [
        lambda history: _record(history, STREAM, attempts=2),
        lambda history: history.world.settings.update(MAX_ATTEMPTS=1),
    ],
    "no_replica_is_tried_twice": [
        lambda history: history.works["engine-0"].append(_work(history, RETRIED)),
    ],
    "a_request_is_at_one_replica_at_a_time": [_at_two_at_once],
    "what_is_tried_once_the_client_has_read_goes_on_from_there": [_tried_again_later],
    "work_ends_with_its_request": [
        lambda history: setattr(_work(history, GONE), "ended", BEGAN_S + 2.5),
        lambda history: setattr(_work(history, GONE), "ended", None),
    ],
    "no_replica_gets_a_call_for_a_model_that_it_does_not_serve": [_served_elsewhere],
    "what_reaches_an_engine_is_what_the_client_sent": [
        lambda history: setattr(_seen(history, WHOLE), "visit", replace(WORLD.visits[WHOLE], tokens=4)),
    ],
    "second_tries_stay_within_their_budgets": [
        lambda history: history.world.settings.update(RETRY_BUDGET=0.0),
    ],
    "no_replica_has_more_than_its_slots": [lambda history: history.peaks.runs("engine-0", 17)],
    "no_line_is_longer_than_its_places": [
        lambda history: history.peaks.waits("model-0", 101, 0),
        lambda history: history.peaks.waits("model-0", 2, 1_000_001),
    ],
    "no_slot_idles_while_somebody_waits": [
        _idled,
    ],
    "a_refusal_costs_no_engine_anything": [
        lambda history: _record(history, WHOLE, outcome=Outcome.QUEUE_FULL, error="QueueFull"),
    ],
    "a_full_line_is_said_at_once": [_heard_late_that_it_is_full],
    "who_is_sent_away_for_a_while_is_told_for_how_long": [
        lambda history: setattr(_seen(history, WHOLE), "status", 503),
        _told_not_when,
    ],
    "a_circuit_opens_only_after_failures_in_a_row": [
        lambda history: _circuit(history, "engine-0", ("open", 5.0)),
    ],
    "an_open_circuit_lets_nobody_through": [_worked_while_open],
    "a_half_open_circuit_lets_one_try_at_a_time": [_two_tried_at_once],
    "a_key_is_executed_with_success_at_most_once": [_done_twice],
    "a_key_is_executed_once_at_a_time": [_done_at_once],
    "all_who_ask_with_one_key_get_the_same_bytes": [_done_twice],
    "who_comes_back_gets_the_rest": [_went_on_elsewhere],
    "nobody_has_more_at_once_than_allowed": [_two_at_once],
    "nobody_makes_more_requests_than_allowed": [
        lambda history: _of_one_tenant(history, requests_per_minute=1),
    ],
    "nobody_uses_more_tokens_than_allowed_and_one_request": [
        lambda history: _of_one_tenant(history, tokens_per_minute=1),
    ],
    "those_who_wait_are_served_by_their_weights": [_one_tenant_waits_for_all_of_another],
    "the_ledger_has_what_was_recorded": [
        lambda history: setattr(history.counted[0], "told", (0, 0, 0)),
        lambda history: _record(history, GONE, usage=None),
    ],
    "no_answer_begins_after_its_deadline": [
        lambda history: setattr(_seen(history, STREAM), "answered", BEGAN_S + 15.1),
    ],
    "no_request_lasts_longer_than_it_may": [
        lambda history: setattr(_seen(history, STREAM), "returned", BEGAN_S + 15.1),
        lambda history: _drained_before(history, lasting_s=1.0),
    ],
    "a_stalled_reader_is_cut_off": [lambda history: setattr(_seen(history, STREAM), "longest_block_s", 2.1)],
    "all_is_given_back": [
        lambda history: history.left.held.update({"leases of engine-0": 1}),
        lambda history: history.left.tasks.append("Prober._probe"),
    ],
}


def _begun_all_the_same(history: History) -> None:
    seen = _seen(history, KNOWS)
    call = Call(seen.visit.id, Route.CHAT, "model-0", seen.visit.body(), BEGAN_S + 1_000)
    history.works["engine-0"].append(Work(call, Script(), BEGAN_S + 2.5, BEGAN_S + 2.6, End.FINISHED))


def _never_found_again(history: History) -> None:
    history.events = [each for each in history.events if not (each[0] > BEGAN_S and each[2] == StoreChanged(True, ""))]


def _never_answered(history: History) -> None:
    next(each for each in history.exchanges if each.commands[0][0] != "HGETALL").ended = None


BREAKS_WITH_REDIS: dict[str, list[Break]] = {
    "while_redis_is_away_nothing_is_begun_for_a_key": [_begun_all_the_same],
    "who_brings_a_key_while_redis_is_away_hears_so_at_once": [
        lambda history: setattr(_seen(history, KNOWS), "returned", BEGAN_S + 2.55),
    ],
    "redis_is_no_reason_to_refuse_who_brings_no_key": [
        lambda history: _record(history, KEYLESS, error="StoreDown"),
    ],
    "redis_keeps_nobody_waiting_longer_than_allowed": [
        lambda history: setattr(_seen(history, KEYLESS), "body_sent", BEGAN_S + 2.49),
    ],
    "no_exchange_with_redis_lasts_longer_than_allowed": [
        lambda history: setattr(history.exchanges[0], "ended", BEGAN_S),
        _never_answered,
    ],
    "redis_is_given_up_only_where_something_is_wrong": [
        lambda history: setattr(history, "world", replace(history.world, store_faults=())),
    ],
    "redis_is_found_again_soon_after_it_is_back": [_never_found_again],
    "gateways_tell_the_same_usage_which_is_all_of_it": [
        lambda history: setattr(history.counted[1], "told", (0, 0, 0)),
        lambda history: setattr(history.counted[0], "own", (0, 0, 0)),
        lambda history: setattr(history.counted[0], "of_all", False),
    ],
    "nothing_is_held_in_redis_when_all_is_over": [
        lambda history: history.left.places.append("gateway-1:0"),
        lambda history: history.left.claims.append("gateway.run"),
    ],
    "a_key_is_executed_with_success_at_most_once": [lambda history: _of_one_key(history, KEYED, KEYLESS)],
    "nobody_has_more_at_once_than_allowed": [_all_at_once_at_two_gateways],
}


def _says_in_place_of(history: History, old: bytes, new: bytes, *, at: int = -4) -> None:
    """Something else, in one of the blocks of the stream that was taken over."""
    blocks = _seen(history, DYING).blocks
    assert old in blocks[at][1]
    blocks[at] = (blocks[at][0], blocks[at][1].replace(old, new))


def _asked_for(history: History, text: str) -> None:
    """What comes after this."""
    work = _work(history, DYING)
    body = json.loads(work.call.body)
    body["messages"][-1]["content"] = text
    work.call = msgspec.structs.replace(work.call, body=json.dumps(body).encode())


BREAKS_WITH_A_DEATH: dict[str, list[Break]] = {
    "a_stream_that_is_taken_over_is_seamless": [
        lambda history: _says_in_place_of(history, b'"id":"dying"', b'"id":"other"'),
        lambda history: _says_in_place_of(history, b'"delta":{', b'"delta":{"role":"assistant",'),
        lambda history: _says_in_place_of(history, b'"finish_reason":null', b'"finish_reason":"stop"'),
        lambda history: _says_in_place_of(history, b'"completion_tokens":30', b'"completion_tokens":29', at=-2),
        lambda history: _seen(history, DYING).blocks.pop(-4),
        lambda history: _seen(history, DYING).blocks.insert(-4, _seen(history, DYING).blocks[-4]),
        lambda history: _record(history, DYING, usage=Usage(99, 30)),
    ],
    "who_takes_a_stream_over_is_told": [
        lambda history: _record(history, DYING, taken_over=2),
        lambda history: history.events.append((BEGAN_S, 0, StreamTakenOver("living", "engine-0", "engine-1"))),
    ],
    "what_is_tried_once_the_client_has_read_goes_on_from_there": [
        lambda history: _asked_for(history, ""),
        lambda history: _asked_for(history, _seen(history, DYING).text),
    ],
    "what_reaches_an_engine_is_what_the_client_sent": [
        lambda history: _asked_for(history, "as if it were a word more " * 9),
    ],
}


def test_as_it_was_all_hold(history: History) -> None:
    assert check(history) == []
    ends = [_work(history, which).end for which in range(4)]
    assert ends == [End.FINISHED, End.FINISHED, End.ABORTED, End.FINISHED]
    assert len(_works(history, RETRIED)) == 2, "one of the four is a retry"


@pytest.mark.parametrize(
    ("name", "index"), [(name, index) for name, ways in BREAKS.items() for index in range(len(ways))]
)
def test_what_is_broken_is_seen(history: History, name: str, index: int) -> None:
    BREAKS[name][index](history)
    found = [violation.message for violation in check(history) if violation.invariant == name]
    assert found
    assert all(len(message) < 500 for message in found), "a message is read by people"


def test_with_a_death_all_hold_as_it_was(dying: History) -> None:
    assert check(dying) == []
    dead = next(seen for seen in dying.seen if len(dying.works_by_request()[seen.visit.id]) == 2)
    assert dead is _seen(dying, DYING)
    ends = [work.end for _, work in _works(dying, DYING)]
    assert ends == [End.BROKEN, End.FINISHED]
    assert [record.taken_over for record in dying.records if record.id == "dying"] == [1]


@pytest.mark.parametrize(
    ("name", "index"), [(name, index) for name, ways in BREAKS_WITH_A_DEATH.items() for index in range(len(ways))]
)
def test_what_is_broken_with_a_death_is_seen(dying: History, name: str, index: int) -> None:
    BREAKS_WITH_A_DEATH[name][index](dying)
    found = [violation.message for violation in check(dying) if violation.invariant == name]
    assert found
    assert all(len(message) < 500 for message in found), "a message is read by people"


def test_with_redis_all_hold_as_it_was(shared: History) -> None:
    assert check(shared) == []
    assert [seen.status for seen in shared.seen] == [200, 200, 503, 503, 200]
    assert _seen(shared, ELSEWHERE).headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize(
    ("name", "index"), [(name, index) for name, ways in BREAKS_WITH_REDIS.items() for index in range(len(ways))]
)
def test_what_is_broken_with_redis_is_seen(shared: History, name: str, index: int) -> None:
    BREAKS_WITH_REDIS[name][index](shared)
    found = [violation.message for violation in check(shared) if violation.invariant == name]
    assert found
    assert all(len(message) < 500 for message in found), "a message is read by people"


def test_each_invariant_has_been_seen_to_fail() -> None:
    seen = BREAKS.keys() | BREAKS_WITH_A_DEATH.keys() | BREAKS_WITH_REDIS.keys()
    assert seen == {invariant.__name__ for invariant in INVARIANTS}
