"""Who serves what, who is ready, and who answers a call."""

import asyncio
import random
import sys
from collections.abc import Container, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.fleet import Choice, Fleet, Prospect
from app.cluster.replica import Lease, Replica, State
from app.engines.scripted import Scripted
from app.errors import NoReplica, UnknownModel
from app.gateway.routing import POLICIES
from app.generation import Call, Route
from app.reliability.circuit import Circuit
from app.reliability.limit import Load
from app.telemetry.base import ReplicaChanged
from app.telemetry.record import Reason
from app.telemetry.story import MOST_CANDIDATES, Candidate
from app.tenant import Priority
from tests.support.clock import FakeClock
from tests.support.recorder import Recorder


def call(model: str = "demo", priority: Priority = Priority.NORMAL) -> Call:
    return Call(id="r", route=Route.CHAT, model=model, body=b"{}", expires_at=0, priority=priority)


class Place:
    """A fleet whose replicas answer what a test says they do."""

    def __init__(self, policy: str = "least_load") -> None:
        self.recorder = Recorder()
        self.fleet = Fleet(POLICIES[policy](), self.recorder)

    def add(self, name: str, *models: str, length: int | None = None, **how: Any) -> Replica:
        replica = Replica(name, Scripted(), **how)
        self.fleet.add(replica)
        if models:
            self.fleet.answered(replica, dict.fromkeys(models, length))
        return replica

    def lease(self, model: str = "demo", avoiding: Container[str] = (), priority: Priority = Priority.NORMAL) -> Lease:
        lease = self.fleet.lease(call(model, priority), avoiding)
        assert lease is not None
        return lease

    def chosen(self, model: str = "demo", avoiding: Container[str] = (), times: int = 1) -> set[str]:
        leases = [self.lease(model, avoiding) for _ in range(times)]
        for lease in leases:
            lease.release()
        return {lease.replica.name for lease in leases}

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(each.replica, each.state) for each in self.recorder.events if isinstance(each, ReplicaChanged)]


@pytest.fixture
def place() -> Place:
    return Place()


# --- leases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "fair"), [("least_load", 10), ("round_robin", 10), ("power_of_two", 13)])
async def test_many_tasks_that_choose_at_once_spread_evenly(policy: str, fair: int) -> None:
    """Choosing and counting is one step: were there an await between, all would see the same idle replica."""
    place = Place(policy)
    replicas = [place.add(name, "demo") for name in "abcd"]
    most = 0

    async def work() -> None:
        nonlocal most
        with place.lease() as lease:
            most = max(most, lease.replica.running)
            for _ in range(5):
                await asyncio.sleep(0)

    await asyncio.gather(*(work() for _ in range(40)))
    assert 10 <= most <= fair
    assert [replica.running for replica in replicas] == [0] * 4


@given(st.data())
def test_with_least_load_no_replica_is_ever_two_ahead_of_another(data: st.DataObject) -> None:
    place = Place()
    replicas = [place.add(name, "demo") for name in "abc"]
    for _ in range(data.draw(st.integers(1, 30))):
        place.lease()
        counts = [replica.running for replica in replicas]
        assert max(counts) - min(counts) <= 1


def test_a_lease_goes_to_a_ready_replica_that_serves_the_model(place: Place) -> None:
    place.add("a", "x")
    place.add("b", "y")
    place.add("c", "x", "y")
    place.fleet.failed(place.add("d", "y"), "EngineUnreachable")
    place.add("starting")
    assert place.chosen("x", times=20) == {"a", "c"}
    assert place.chosen("y", times=20) == {"b", "c"}


def test_a_replica_to_avoid_is_avoided_to_the_last(place: Place) -> None:
    for name in "abc":
        place.add(name, "demo")
    assert place.chosen(avoiding={"a"}, times=20) == {"b", "c"}
    assert place.chosen(avoiding={"a", "b"}) == {"c"}
    with pytest.raises(NoReplica) as caught:
        place.fleet.lease(call(), avoiding={"a", "b", "c"})
    assert caught.value.retry_after


def test_avoiding_is_for_one_call_only(place: Place) -> None:
    place.add("a", "demo")
    with pytest.raises(NoReplica):
        place.fleet.lease(call(), avoiding={"a"})
    assert place.chosen() == {"a"}


def test_the_policy_sees_candidates_and_call_and_is_not_asked_when_there_is_no_choice() -> None:
    asked: list[tuple[list[str], str]] = []

    def last(candidates: Sequence[Replica], call: Call) -> Choice:
        asked.append(([replica.name for replica in candidates], call.model))
        return candidates[-1], Reason.TURN

    fleet = Fleet(last, Recorder())
    for name in "ab":
        replica = Replica(name, Scripted())
        fleet.add(replica)
        fleet.answered(replica, {"x": 1, "y": 1} if name == "a" else {"x": 1})
    leases = [fleet.lease(call("x")), fleet.lease(call("y"))]
    assert [(lease.replica.name, lease.reason) for lease in leases if lease] == [("b", Reason.TURN), ("a", Reason.ONLY)]
    assert asked == [(["a", "b"], "x")]


def test_a_lease_counts_what_its_call_is_expected_to_cost() -> None:
    place = Place()
    a, b = place.add("a", "demo", slots=8), place.add("b", "demo", slots=8)
    costs = {}
    for cost in (9_000.0, 100.0, 200.0, 300.0):
        lease = place.fleet.lease(call(), cost=cost)
        assert lease is not None
        costs[lease] = (lease.replica, cost)
    assert sorted((a.load, b.load)) == [600, 9_000]
    for lease, (replica, cost) in costs.items():
        before = replica.load
        lease.release()
        assert before - replica.load == cost
    assert a.load == b.load == 0


def test_what_a_replica_has_read_is_remembered_with_the_lease_and_forgotten_when_it_begins_anew() -> None:
    place = Place("prefix")
    a, b = place.add("a", "demo"), place.add("b", "demo")
    asked = msgspec.structs.replace(call(), prefix=(1, 2, 3))
    lease = place.fleet.lease(asked)
    assert lease is not None
    reader = lease.replica
    for _ in range(5):
        again = place.fleet.lease(asked)
        assert again is not None
        assert (again.replica, again.reason) == (reader, Reason.PREFIX)
    place.fleet.answered(reader, {"demo": None, "adapter": None})
    assert reader.prefixes.known((1, 2, 3)) == 3, "one model more empties no cache"
    place.fleet.failed(reader, "EngineUnreachable")
    place.fleet.answered(reader, {"demo": None})
    assert a.prefixes.known((1, 2, 3)) == b.prefixes.known((1, 2, 3)) == 0


def test_a_replica_that_others_use_too_is_given_less() -> None:
    place = Place()
    shared, ours = place.add("shared", "demo", slots=32), place.add("ours", "demo", slots=32)
    place.fleet.told(shared, Load(waiting=10, running=10, kv_share=None))
    place.fleet.told(ours, Load(waiting=0, running=0, kv_share=None))
    taken = [place.fleet.lease(call(), cost=500) for _ in range(12)]
    assert {lease.replica.name for lease in taken if lease} == {"ours"}
    place.fleet.told(shared, Load(waiting=0, running=0, kv_share=None))
    lease = place.fleet.lease(call(), cost=500)
    assert lease is not None
    assert lease.replica is shared


# --- room and circuits ----------------------------------------------------------------------------------------------


def test_a_full_replica_takes_no_more_and_when_all_are_full_nobody_is_chosen(place: Place) -> None:
    place.add("a", "demo", slots=1)
    place.add("b", "demo", slots=2)
    leases = [place.lease() for _ in range(3)]
    assert place.fleet.slots("demo") == 3
    assert place.fleet.lease(call()) is None
    assert place.fleet.is_full_for(call())
    next(lease for lease in leases if lease.replica.name == "a").release()
    assert not place.fleet.is_full_for(call())
    assert place.lease().replica.name == "a"


def test_a_reserved_slot_is_for_interactive_calls_only(place: Place) -> None:
    place.add("a", "demo", slots=2, reserved=1)
    place.lease()
    assert place.fleet.lease(call()) is None
    assert place.fleet.is_full_for(call())
    assert not place.fleet.is_full_for(call(priority=Priority.INTERACTIVE))
    place.lease(priority=Priority.INTERACTIVE)
    assert place.fleet.lease(call(priority=Priority.INTERACTIVE)) is None


def test_whoever_waits_for_room_is_told_of_each_lease_that_ends_once(place: Place) -> None:
    freed: list[Replica] = []
    replica = place.add("a", "demo")
    place.fleet.on_room = freed.append
    with place.lease() as lease:
        assert freed == []
    lease.release()
    assert freed == [replica]
    assert replica.running == 0


def test_a_replica_that_fails_again_and_again_gets_a_pause_and_then_one_call_to_try(place: Place) -> None:
    clock = FakeClock()
    sick = place.add("sick", "demo", circuit=Circuit(2, 5.0, 60.0, clock, lambda state: None))
    for _ in range(2):
        with place.lease() as lease:
            lease.failed()
    assert place.fleet.slots("demo") == 0
    with pytest.raises(NoReplica) as caught:
        place.fleet.lease(call())
    assert (caught.value.code, caught.value.retry_after) == ("circuit_open", 5.0)
    assert not place.fleet.is_full_for(call()), "waiting for room would be waiting for nothing"
    place.add("well", "demo")
    assert place.chosen(times=4) == {"well"}
    clock.advance(5)
    trial = place.lease(avoiding={"well"})
    assert place.chosen(times=4) == {"well"}, "one tries, the others do not"
    trial.answers()
    trial.release()
    assert place.chosen(times=4) == {"sick", "well"}
    assert sick.running == 0


# --- models -------------------------------------------------------------------------------------------------------


def test_a_model_is_resolved_by_name_or_because_it_is_the_only_one(place: Place) -> None:
    place.add("a", "demo")
    assert place.fleet.resolve("demo") == "demo"
    assert place.fleet.resolve(None) == "demo"
    with pytest.raises(UnknownModel) as caught:
        place.fleet.resolve("other")
    assert caught.value.param == "model"


def test_where_several_models_are_served_one_must_be_named(place: Place) -> None:
    place.add("a", "x", "y")
    assert place.fleet.resolve("y") == "y"
    with pytest.raises(UnknownModel) as caught:
        place.fleet.resolve(None)
    assert "name one" in caught.value.message


def test_before_anything_is_known_no_model_is_called_unknown(place: Place) -> None:
    """While the first engine loads, 'come back later' is true and 'there is no such model' may be false."""
    place.add("a")
    assert place.fleet.resolve("demo") == "demo"
    for model in ("demo", place.fleet.resolve(None)):
        with pytest.raises(NoReplica):
            place.fleet.lease(call(model))


def test_a_model_whose_replicas_fail_stays_known(place: Place) -> None:
    place.fleet.failed(place.add("a", "demo", length=2_048), "EngineUnreachable")
    assert place.fleet.models == {"demo": 2_048}
    assert place.fleet.resolve("demo") == "demo"
    with pytest.raises(NoReplica):
        place.fleet.lease(call())


def test_a_model_that_no_replica_serves_any_more_is_unknown(place: Place) -> None:
    replica = place.add("a", "old")
    place.fleet.answered(replica, {"new": None})
    assert place.fleet.models == {"new": None}
    with pytest.raises(UnknownModel):
        place.fleet.resolve("old")


@pytest.mark.parametrize("order", ["abc", "cba", "bac"])
def test_a_context_is_as_long_as_the_shortest_that_a_replica_tells(place: Place, order: str) -> None:
    lengths = {"a": 4_096, "b": None, "c": 2_048}
    for name in order:
        place.add(name, "demo", length=lengths[name])
    assert place.fleet.models == {"demo": 2_048}


# --- coming and going ---------------------------------------------------------------------------------------------


def test_a_failing_replica_leaves_the_rotation_and_comes_back(place: Place) -> None:
    a, b = place.add("a", "demo"), place.add("b", "demo")
    place.fleet.failed(a, "EngineUnreachable")
    assert (a.state, a.reason) == (State.FAILING, "EngineUnreachable")
    assert place.chosen(times=10) == {"b"}
    place.fleet.failed(b, "EngineSilent")
    assert not place.fleet.ready
    place.fleet.answered(a, a.models)
    assert (a.state, a.reason) == (State.READY, "")
    assert place.fleet.ready
    assert place.chosen() == {"a"}


def test_a_replica_that_never_answered_goes_on_starting(place: Place) -> None:
    replica = place.add("a")
    place.fleet.failed(replica, "EngineUnreachable")
    assert replica.state is State.STARTING
    assert place.told == [("a", "starting")]


def test_each_change_is_told_once(place: Place) -> None:
    replica = place.add("a", "demo")
    place.fleet.answered(replica, {"demo": None})
    place.fleet.failed(replica, "EngineUnreachable")
    place.fleet.failed(replica, "EngineUnreachable")
    place.fleet.answered(replica, {"demo": None})
    place.fleet.answered(replica, {"demo": None, "lora": None})
    place.fleet.remove("a")
    assert place.told == [
        ("a", "starting"),
        ("a", "ready"),
        ("a", "failing"),
        ("a", "ready"),
        ("a", "ready"),
        ("a", "removed"),
    ]


def test_a_removed_replica_gets_no_calls_and_its_running_ones_end_well(place: Place) -> None:
    replica = place.add("a", "demo")
    with place.lease():
        place.fleet.remove("a")
        assert (place.fleet.replicas, place.fleet.models, place.fleet.ready) == ([], {}, False)
        with pytest.raises(NoReplica):
            place.fleet.lease(call())
        assert replica.running == 1
    assert replica.running == 0


def test_news_of_a_removed_replica_come_too_late_to_count(place: Place) -> None:
    """A probe or a call may still be on its way when a replica is removed, or replaced under its name."""
    replica = place.add("a", "demo")
    place.fleet.remove("a")
    told = list(place.told)
    place.fleet.answered(replica, {"demo": None, "late": None})
    place.fleet.failed(replica, "EngineUnreachable")
    place.add("a", "demo")
    place.fleet.failed(replica, "EngineUnreachable")
    assert place.fleet.models == {"demo": None}
    assert place.fleet.ready
    assert place.told == [*told, ("a", "starting"), ("a", "ready")]


def test_whatever_happens_the_index_is_true(place: Place) -> None:
    dice = random.Random(7)
    models = ["x", "y", "z"]
    for _ in range(2_000):
        names = [replica.name for replica in place.fleet.replicas]
        match dice.randrange(4):
            case 0 if len(names) < 6:
                place.add(next(name for name in "abcdef" if name not in names))
            case 1 if len(names) > 3:
                place.fleet.remove(dice.choice(names))
            case 2 if names:
                place.fleet.answered(
                    dice.choice(place.fleet.replicas), dict.fromkeys(dice.sample(models, dice.randrange(4)))
                )
            case 3 if names:
                place.fleet.failed(dice.choice(place.fleet.replicas), "EngineUnreachable")
        assert set(place.fleet.models) == {model for replica in place.fleet.replicas for model in replica.models}
        for model in models:
            ready = {
                replica.name
                for replica in place.fleet.replicas
                if replica.state is State.READY and model in replica.models
            }
            if ready:
                assert place.chosen(model, times=2 * len(ready)) <= ready
            else:
                with pytest.raises(NoReplica):
                    place.fleet.lease(call(model))


# --- what is to come, and what goes --------------------------------------------------------------------------------


def comes(*models: str, slots: int = 1, ready_at: float | None = None) -> Prospect:
    return Prospect(models, coming=True, slots=slots, ready_at=ready_at)


def test_calls_wait_for_what_comes_and_not_for_what_has_failed(place: Place) -> None:
    place.fleet.foretell("w1", comes("next"))
    place.fleet.foretell("w2", Prospect(("broken",), coming=False))
    assert place.fleet.lease(call("next")) is None
    assert place.fleet.is_full_for(call("next")), "whoever waits stays in the line"
    assert {model: place.fleet.standing(model) for model in place.fleet.models} == {
        "next": "coming",
        "broken": "unavailable",
    }
    with pytest.raises(NoReplica):
        place.fleet.lease(call("broken"))
    assert (place.fleet.served, place.fleet.ready) == ({}, False)
    place.fleet.foretell("w1", None)
    with pytest.raises(UnknownModel):
        place.fleet.resolve("next")


def test_what_comes_is_as_much_as_all_bring_and_as_soon_as_the_first(place: Place) -> None:
    place.fleet.foretell("w1", comes("next", slots=4, ready_at=50.0))
    place.fleet.foretell("w2", comes("next", "other", slots=3, ready_at=20.0))
    place.fleet.foretell("w3", comes("next", slots=2))
    assert (place.fleet.slots("next"), place.fleet.ready_at("next")) == (9, 20.0)
    assert (place.fleet.slots("other"), place.fleet.ready_at("other")) == (3, 20.0)
    place.add("w1", "next", slots=4)
    assert (place.fleet.slots("next"), place.fleet.ready_at("next"), place.fleet.coming) == (4, None, ("other",))


def test_a_draining_replica_gets_nothing_new_while_another_serves_its_model(place: Place) -> None:
    a, b = place.add("a", "demo", slots=2), place.add("b", "demo", slots=2)
    place.fleet.drain(a)
    assert place.chosen(times=2) == {"b"}
    assert place.fleet.capacity == place.fleet.slots("demo") == 2
    leases = [place.lease(), place.lease()]
    assert place.fleet.lease(call(), waited=True) is None, "those that wait, wait for the other one"
    place.fleet.admit(a)
    assert place.lease().replica is a
    assert [lease.replica for lease in leases] == [b, b]
    assert place.told[-2:] == [("a", "draining"), ("a", "ready")]


def test_the_last_one_of_a_model_serves_those_that_wait_while_it_drains_and_no_newcomers(place: Place) -> None:
    last = place.add("a", "old", slots=1)
    place.fleet.drain(last)
    assert place.fleet.standing("old") == "leaving"
    assert place.fleet.served == {}
    with pytest.raises(NoReplica) as caught:
        place.fleet.lease(call("old"))
    assert (caught.value.code, bool(caught.value.retry_after)) == ("model_making_way", True)
    assert not place.fleet.is_full_for(call("old"))
    lease = place.fleet.lease(call("old"), waited=True)
    assert lease is not None
    assert place.fleet.is_full_for(call("old"))
    assert place.fleet.lease(call("old"), waited=True) is None
    place.fleet.remove("a")
    with pytest.raises(NoReplica):
        place.fleet.lease(call("old"), waited=True)


def test_a_model_that_leaves_and_comes_again_is_waited_for(place: Place) -> None:
    """The same one is loaded anew: nobody prolongs its drain, and nobody is refused."""
    last = place.add("a", "demo")
    place.fleet.foretell("swap/", comes("demo"))
    place.fleet.drain(last)
    assert place.fleet.lease(call(), waited=True) is None
    assert place.fleet.lease(call()) is None


def test_a_model_that_leaves_is_not_meant_by_those_who_name_none(place: Place) -> None:
    place.fleet.drain(place.add("a", "old"))
    place.add("b", "new")
    assert place.fleet.resolve(None) == "new"
    assert place.fleet.resolve("old") == "old"


def test_a_draining_replica_that_fails_serves_nobody(place: Place) -> None:
    last = place.add("a", "old")
    place.fleet.drain(last)
    place.fleet.failed(last, "EngineUnreachable")
    assert last.standing == "failing"
    with pytest.raises(NoReplica):
        place.fleet.lease(call("old"), waited=True)
    place.fleet.answered(last, last.models)
    assert last.standing == "draining"


def test_to_say_the_same_again_changes_nothing(place: Place) -> None:
    changes: list[int] = []
    replica = place.add("a", "demo")
    place.fleet.on_change = lambda: changes.append(1)
    for _ in range(3):
        place.fleet.foretell("w1", comes("next"))
        place.fleet.drain(replica)
    assert len(changes) == 2
    place.fleet.foretell("w2", None)
    assert len(changes) == 2


# --- what there was to choose from --------------------------------------------------------------------------------


def test_a_lease_tells_its_options_where_somebody_wants_to_know() -> None:
    place = Place()
    assert place.add("a", "demo", slots=4, reserved=1)
    assert place.lease().options is None
    place.fleet.tells_options = True
    place.add("b", "demo")
    place.add("away", "demo")
    place.fleet.failed(place.fleet.replicas[2], "gone")
    place.add("other", "another")
    options = place.lease().options
    assert options is not None
    seen, able, absent = options
    assert [Candidate(*each) for each in seen] == [
        Candidate("a", 1, 4, 1, 1, 0, "closed"),
        Candidate("b", 0, sys.maxsize, 0, 0, 0, "closed"),
    ]
    assert (able, absent) == (2, (("away", "failing"),))


def test_of_many_options_a_few_are_kept_and_the_chosen_one_is_among_them() -> None:
    place = Place()
    place.fleet.tells_options = True
    for number in range(MOST_CANDIDATES + 2):
        place.add(f"r{number}", "demo")
    ready = list(place.fleet._ready["demo"])
    for _ in range(MOST_CANDIDATES + 2):
        lease = place.lease()
        assert lease.options is not None
        seen, able, _ = lease.options
        names = [Candidate(*each).replica for each in seen]
        assert (len(set(names)), able) == (MOST_CANDIDATES, MOST_CANDIDATES + 2)
        assert lease.replica.name in names
    assert place.fleet._ready["demo"] == ready, "what is looked at is a copy"
