"""Gateways with a defect that was put in: each is found, by the invariant that is there for it, in a few worlds.

Without this nobody would know whether worlds are rough enough for an invariant to matter.
"""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pytest

from app.cluster import fleet
from app.cluster.fleet import Fleet
from app.cluster.replica import Lease, Replica
from app.errors import EngineBusy, StoreDown
from app.gateway.admission import Admission
from app.gateway.answers import EventStream
from app.gateway.app import Gateway
from app.gateway.intake import Intake
from app.gateway.lifeline import Lifeline
from app.generation import Call
from app.reliability.account import Account
from app.reliability.circuit import Circuit, CircuitState
from app.reliability.fair_queue import FairQueue, Fifo
from app.reliability.ledger import Ledger
from app.reliability.recording import Recording
from app.reliability.retry import RetryBudget
from app.reliability.stores import redis as redis_store
from app.reliability.stores import redis_quota
from app.reliability.stores.answer_keys import AnswerKeys
from app.reliability.stores.answers import Key
from app.reliability.stores.embedded import EmbeddedAnswers
from app.reliability.stores.lease import Lease as KeyLease
from app.reliability.stores.patience import Patience
from app.reliability.stores.redis import SharedStore
from app.reliability.stores.redis_quota import RedisQuota
from app.reliability.stores.shared import SharedAnswers
from app.reliability.stores.sqlite_ledger import SqliteLedger
from app.wire.answers import ChatStream
from app.wire.continuation import rest_of
from app.wire.seam import Seam
from app.wire.transcript import Transcript
from tests.simulation.draw import world_of
from tests.simulation.invariants import check
from tests.simulation.simulate import simulate

WORLDS = range(150)
DYING = range(107, 900, 10)
WITH_REDIS = range(340, 640, 2)
"""Where each of the defects below is found soon."""

Defect = Callable[[], AbstractContextManager[Any]]


def method(owner: type, name: str, instead: Any) -> Defect:
    return lambda: mock.patch.object(owner, name, instead)


def nothing(*args: Any, **kwargs: Any) -> None:
    """What should be done is not."""


def yes(*args: Any, **kwargs: Any) -> bool:
    return True


def _all_of_them(replicas: Sequence[Replica], call: Call, avoiding: Container[str]) -> list[Replica]:
    """However much they have to do."""
    return [replica for replica in replicas if replica.circuit.allows() and replica.name not in avoiding]


def twice(owner: type, name: str) -> Defect:
    right = getattr(owner, name)

    def doubled(*args: Any) -> None:
        right(*args)
        right(*args)

    return method(owner, name, doubled)


async def _blocks_lost(out: EventStream, block: bytes) -> None:
    """That with the fourth token of a stream is never written."""
    if b".3 " not in block:
        await _write(out, block)


async def _forgotten(answers: EmbeddedAnswers, key: Key) -> None:
    """No key was ever used."""


async def _at_any_rate(answers: SharedAnswers, key: Key) -> Any:
    """Who cannot ask has it."""
    try:
        return await _claim(answers, key)
    except StoreDown:
        return KeyLease(answers._keys, key, "nobody.knows")


async def _to_everybody(keys: AnswerKeys, key: Key, token: str) -> list[Any]:
    return [b"ours"]


async def _once(quota: RedisQuota) -> None:
    """What does not arrive is not said again."""
    await _settle(quota)
    quota._unsent = []


async def _first_look(store: SharedStore) -> None:
    await store._look()


async def _kept_for_ever(lease: KeyLease, error: object) -> None:
    """Who let go of a key goes on renewing it."""


def _refused(*args: Any) -> Any:
    raise StoreDown


_claim = SharedAnswers.claim
_settle = RedisQuota.settle
_write = EventStream.write
_reader = Recording.reader
_remainder = Transcript.remainder
_lease = Fleet.lease

DEFECTS: dict[str, tuple[Defect, str]] = {
    "a lease is not given back": (method(Lease, "release", nothing), "all_is_given_back"),
    "who left the line is not forgotten": (method(Admission, "forget", nothing), "all_is_given_back"),
    "what was reserved is not settled": (method(Account, "settle", nothing), "all_is_given_back"),
    "a hang-up is not heard": (method(Lifeline, "_gone", nothing), "work_ends_with_its_request"),
    "a stalled reader is waited for": (method(Lifeline, "waits", nothing), "a_stalled_reader_is_cut_off"),
    "deadlines are not kept": (
        method(Intake, "_time_allowed", lambda *_: math.inf),
        "no_request_lasts_longer_than_it_may",
    ),
    "a failed replica is tried again": (
        method(Fleet, "lease", lambda fleet, call, avoiding=(), *more, **how: _lease(fleet, call, (), *more, **how)),
        "no_replica_is_tried_twice",
    ),
    "slots are not counted": (
        lambda: mock.patch.object(fleet, "_free", _all_of_them),
        "no_replica_has_more_than_its_slots",
    ),
    "the line is endless": (method(FairQueue, "has_room_for", yes), "no_line_is_longer_than_its_places"),
    "nobody hands on a free slot": (method(Admission, "_hand_on", nothing), "no_slot_idles_while_somebody_waits"),
    "first come, first served": (
        method(Gateway, "_line", lambda gateway: Fifo(gateway.clock)),
        "those_who_wait_are_served_by_their_weights",
    ),
    "a crowd tries a sick replica": (
        method(Circuit, "allows", lambda circuit: circuit.state is not CircuitState.OPEN or circuit.reopens_in() <= 0),
        "a_half_open_circuit_lets_one_try_at_a_time",
    ),
    "backpressure is blamed": (
        method(EngineBusy, "blames_engine", True),
        "a_circuit_opens_only_after_failures_in_a_row",
    ),
    "retries have no budget": (method(RetryBudget, "withdraw", yes), "second_tries_stay_within_their_budgets"),
    "kept answers are forgotten": (
        method(EmbeddedAnswers, "find", _forgotten),
        "a_key_is_executed_with_success_at_most_once",
    ),
    "the rest of a stream begins too late": (
        method(Recording, "reader", lambda tape, seen, *more: _reader(tape, seen and min(seen + 1, len(tape)), *more)),
        "who_comes_back_gets_the_rest",
    ),
    "usage is counted twice": (twice(Ledger, "add"), "the_ledger_has_what_was_recorded"),
    "a block is lost": (method(EventStream, "write", _blocks_lost), "a_text_is_what_one_engine_made"),
    "a stream that breaks off is believed": (
        method(ChatStream, "close", nothing),
        "a_stream_ends_with_done_or_with_an_error_and_nothing_follows",
    ),
}


DEFECTS_WITH_REDIS: dict[str, tuple[Defect, str]] = {
    "keys go on without Redis": (
        method(SharedAnswers, "claim", _at_any_rate),
        "while_redis_is_away_nothing_is_begun_for_a_key",
    ),
    "every gateway has keys of its own": (
        method(AnswerKeys, "claim", _to_everybody),
        "a_key_is_executed_once_at_a_time",
    ),
    "Redis is asked though it is known to be away": (
        method(SharedStore, "_ask", SharedStore._answers),
        "who_brings_a_key_while_redis_is_away_hears_so_at_once",
    ),
    "nobody is let in without Redis": (
        method(RedisQuota, "_part_of", _refused),
        "redis_is_no_reason_to_refuse_who_brings_no_key",
    ),
    "Redis is waited for": (method(Patience, "_overdue", nothing), "redis_keeps_nobody_waiting_longer_than_allowed"),
    "answers are waited for": (
        method(Patience, "_overdue", nothing),
        "no_exchange_with_redis_lasts_longer_than_allowed",
    ),
    "a script that is not known is an outage": (
        lambda: mock.patch.object(redis_store, "_is_refusal", yes),
        "redis_is_given_up_only_where_something_is_wrong",
    ),
    "Redis is not looked for again": (
        method(SharedStore, "keep_watch", _first_look),
        "redis_is_found_again_soon_after_it_is_back",
    ),
    "without Redis every gateway has the whole limit": (
        lambda: mock.patch.object(redis_quota, "_part", lambda limits, share: limits),
        "nobody_makes_more_requests_than_allowed",
    ),
    "every gateway has limits of its own": (
        method(RedisQuota, "reserve", lambda quota, call, expected: quota._local.reserve(call, expected)),
        "nobody_has_more_at_once_than_allowed",
    ),
    "what Redis did not hear is not said again": (
        method(RedisQuota, "settle", _once),
        "nothing_is_held_in_redis_when_all_is_over",
    ),
    "a key is renewed for ever": (
        method(KeyLease, "release", _kept_for_ever),
        "nothing_is_held_in_redis_when_all_is_over",
    ),
    "a Redis that has forgotten is not told again": (
        method(SqliteLedger, "share_all_again", nothing),
        "gateways_tell_the_same_usage_which_is_all_of_it",
    ),
}


def _half(transcript: Transcript) -> Seam | bytes | None:
    """The last piece of the text is forgotten."""
    transcript._read()
    transcript._text = transcript._text[: transcript._text.rstrip().rfind(" ") + 1]
    return _remainder(transcript)


def _always_over(transcript: Transcript) -> Seam | bytes | None:
    transcript._read()
    transcript._finished = True
    return _remainder(transcript)


DEFECTS_OF_TAKEOVER: dict[str, tuple[Defect, str]] = {
    "another replica begins anew": (
        lambda: mock.patch("app.wire.transcript.rest_of", lambda call, text, tokens: call),
        "what_is_tried_once_the_client_has_read_goes_on_from_there",
    ),
    "a part of the text is told again": (
        method(Transcript, "remainder", _half),
        "what_is_tried_once_the_client_has_read_goes_on_from_there",
    ),
    "what is broken off is taken for whole": (
        method(Transcript, "remainder", _always_over),
        "a_text_is_what_one_engine_made",
    ),
    "another replica's count is taken for all of it": (
        method(Seam, "_whole", lambda seam, usage, told: told),
        "a_stream_that_is_taken_over_is_seamless",
    ),
    "the first part does not count": (
        lambda: mock.patch("app.wire.transcript.rest_of", lambda call, text, tokens: rest_of(call, text, 0)),
        "what_reaches_an_engine_is_what_the_client_sent",
    ),
    "who speaks is said again": (
        method(Seam, "_shortened", lambda seam, choice: "as it is"),
        "a_stream_that_is_taken_over_is_seamless",
    ),
}


def _violated(seeds: Iterable[int]) -> Iterator[set[str]]:
    for seed in seeds:
        yield {violation.invariant for violation in check(simulate(world_of(seed)))}


@pytest.mark.parametrize("what", DEFECTS)
def test_a_defect_is_found(what: str) -> None:
    defect, invariant = DEFECTS[what]
    with defect():
        assert any(invariant in violated for violated in _violated(WORLDS))


@pytest.mark.parametrize("what", DEFECTS_OF_TAKEOVER)
def test_a_defect_is_found_where_engines_die(what: str) -> None:
    defect, invariant = DEFECTS_OF_TAKEOVER[what]
    with defect():
        assert any(invariant in violated for violated in _violated(DYING))


@pytest.mark.parametrize("what", DEFECTS_WITH_REDIS)
def test_a_defect_is_found_where_redis_comes_and_goes(what: str) -> None:
    defect, invariant = DEFECTS_WITH_REDIS[what]
    with defect():
        assert any(invariant in violated for violated in _violated(WITH_REDIS))
