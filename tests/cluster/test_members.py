"""Which workers a gateway knows, what it believes of them, and what becomes of the fleet."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.cluster.control import Adapter, Order, Progress, WorkerState
from app.cluster.member import names_of
from app.cluster.members import KEPT_S, LONGEST_PAUSE_S, MISSES
from app.cluster.worker.terms import Terms
from app.errors import (
    ClusterError,
    NameTaken,
    NoReplica,
    NotAccepted,
    UnknownModel,
    UnknownWorker,
    WorkerRefused,
    WorkerUnreachable,
)
from app.settings import Engine
from tests.cluster.gathering import BRIEFLY_S, HEARTBEAT_S, LEASE_S, SLOTS, Board, Gathering, at, call
from tests.support.until import until
from tests.support.workers import ScriptedWorker

GONE = WorkerUnreachable("It cannot be reached.")
EVERYWHERE = Order(model="/models/all", id="all-2")


@pytest.fixture
async def w1() -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker("w1", "demo") as worker:
        yield worker


# --- who is believed ------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_announced_is_looked_at_and_its_engine_gets_calls(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    assert (member.name, member.address, member.state) == ("w1", at("w1"), "ready")
    assert here.fleet.served == {"demo": 2_048}
    assert here.serving() == {"w1"}
    assert here.told == [("w1", "ready")]


async def test_an_address_where_nobody_answers_is_refused_and_forgotten() -> None:
    here = Gathering()
    with pytest.raises(NotAccepted) as caught:
        await here.announce("nobody")
    assert (caught.value.message, caught.value.param) == (f"No worker answers at {at('nobody')}.", "address")
    assert list(here.members) == []


@pytest.mark.parametrize("error", [WorkerRefused("What answers is no worker of ours."), WorkerRefused()])
async def test_something_else_that_answers_there_is_refused_and_closed(w1: ScriptedWorker, error: ClusterError) -> None:
    here = Gathering(w1)
    w1.away = error
    with pytest.raises(NotAccepted) as caught:
        await here.announce("w1")
    assert (caught.value.code, caught.value.message) == ("not_our_worker", error.message)
    assert w1.told == ["closed"]


async def test_why_one_that_is_looked_for_is_not_taken_is_said_once(
    w1: ScriptedWorker, caplog: pytest.LogCaptureFixture
) -> None:
    here = Gathering(w1)
    here.members.know(at("w1"))
    (member,) = here.members._by_address.values()
    w1.away = GONE
    await here.members.look(member)
    assert caplog.messages == [], "it may be about to come"
    w1.away = WorkerRefused("w1 wants another CLUSTER_SECRET.")
    await here.members.look_first()
    for _ in range(3):
        await here.members.look(member)
    why = "w1 wants another CLUSTER_SECRET."
    assert caplog.messages == [f"what answers at {at('w1')} is not taken for a worker: {why}"]


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "-x", "a\nb", "ü"])
async def test_a_name_that_would_not_fit_into_a_path_or_a_label_is_refused(name: str) -> None:
    worker = ScriptedWorker(name)
    here = Gathering(worker)
    with pytest.raises(NotAccepted, match="1 to 64 letters"):
        await here.all_announced()
    assert list(here.members) == []


async def test_a_name_belongs_to_the_worker_that_is_there(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    await here.announce("w1")
    impostor = ScriptedWorker("w1", "demo", life="another")
    here.workers[at("elsewhere")] = impostor
    with pytest.raises(NameTaken, match="w1 is known already, at http://w1:9000"):
        await here.announce("elsewhere")
    assert impostor.told == ["closed"]
    assert [each.address for each in here.members] == [at("w1")]


async def test_one_worker_under_two_addresses_is_one_worker(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    first = await here.announce("w1")
    here.workers[at("alias")] = w1
    assert await here.announce("alias") is first
    assert len(list(here.members)) == 1


async def test_a_lost_workers_name_and_past_go_to_the_one_that_takes_its_place(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    lost = await here.announce("w1")
    await lose(here, w1)
    follower = ScriptedWorker("w1", life="life-2")
    here.workers[at("moved")] = follower
    member = await here.announce("moved")
    assert [each.address for each in here.members] == [at("moved")]
    assert [order.model for order in follower.loads] == ["demo"]
    assert member.name == lost.name
    await follower.stop()


async def test_words_of_a_known_worker_cost_no_look(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    looks = w1.looks
    assert await here.announce("w1") is member
    assert (w1.looks, member.woken.is_set()) == (looks, True)


async def test_another_worker_at_a_known_address_is_another_worker(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.becomes(name="w9", life="life-9")
    w1.becomes(engine_url="http://127.0.0.1:9/w9")
    await here.members.look(member)
    assert [each.name for each in here.members] == ["w9"]
    assert here.serving() == {"w9"}
    assert here.told == [("w1", "ready"), ("w1", "forgotten"), ("w9", "ready")]
    with pytest.raises(UnknownWorker):
        here.members.find("w1")


# --- the lease ------------------------------------------------------------------------------------------------------


async def lose(here: Gathering, worker: ScriptedWorker) -> None:
    worker.dies(GONE)
    member = here.members.find(worker.name)
    here.clock.advance(LEASE_S)
    for _ in range(MISSES):
        await here.members.look(member)
    assert member.state == "lost"


async def test_a_worker_is_counted_on_for_a_lease_and_no_longer(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.away = GONE
    here.clock.advance(LEASE_S - 0.1)
    assert await here.members.look(member) == HEARTBEAT_S
    assert here.serving() == {"w1"}
    here.clock.advance(0.1)
    await here.members.look(member)
    assert (member.state, member.reason) == ("lost", "It cannot be reached.")
    assert here.told == [("w1", "ready"), ("w1", "lost")]
    assert here.replicas_told[-1] == ("w1", "removed")
    with pytest.raises(NoReplica):
        here.fleet.lease(call())
    with pytest.raises(WorkerUnreachable, match=r"w1 is lost\. It cannot be reached\."):
        here.members.reached("w1")
    w1.away = None
    await here.members.look(member)
    assert here.serving() == {"w1"}, "one look and it is back"


async def test_who_has_stood_still_for_a_lease_looks_twice_before_it_gives_anybody_up(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.away = GONE  # the look that was under way
    here.clock.advance(10 * LEASE_S)
    await here.members.look(member)
    assert here.serving() == {"w1"}
    w1.away = None
    await here.members.look(member)
    assert here.told == [("w1", "ready")]


async def test_a_lost_one_is_looked_at_less_and_less_often_and_forgotten_in_the_end(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    await lose(here, w1)
    pauses = [await here.members.look(member) for _ in range(8)]
    assert pauses == sorted(pauses)
    assert (pauses[0] > HEARTBEAT_S, pauses[-1]) == (True, LONGEST_PAUSE_S)
    here.clock.advance(KEPT_S + 1)
    here.members._forget_if_long_lost(member)
    assert list(here.members) == []
    assert here.told[-1] == ("w1", "forgotten")
    with pytest.raises(NoReplica):
        here.fleet.lease(call())
    assert here.fleet.models == {}


async def test_one_whose_address_was_written_down_is_never_forgotten(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    here.members.know(at("w1"))
    await here.members.look_first()
    member = here.members.find("w1")
    await lose(here, w1)
    here.clock.advance(KEPT_S + 1)
    here.members._forget_if_long_lost(member)
    assert [await here.members.look(member) for _ in range(9)][-1] == LEASE_S
    assert here.members.find("w1") is member


async def test_a_worker_that_says_goodbye_is_gone_at_once(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.becomes(WorkerState.STOPPED, engine_url=None)
    await here.members.look(member)
    assert (member.state, member.present) == ("stopped", False)
    assert here.fleet.models == {}, "nobody waits for its model"
    w1.dies(GONE)
    await here.members.look(member)
    assert (member.state, member.reason) == ("stopped", "It has stopped.")


async def test_the_loop_follows_every_change_and_a_word_wakes_it(w1: ScriptedWorker) -> None:
    here = Gathering(w1, clock=time.monotonic, heartbeat_s=BRIEFLY_S)
    async with here.running():
        member = await here.announce("w1")
        w1.becomes(WorkerState.DRAINING)
        await eventually(lambda: member.state == "draining")
        w1.dies(GONE)
        member.seen_at -= LEASE_S
        await eventually(lambda: member.state == "lost")
        member.misses = 50
        w1.away = None
        await asyncio.sleep(3 * BRIEFLY_S)
        await here.announce("w1")
        await eventually(lambda: member.present)
    assert "closed" in w1.told


async def eventually(true: "object", limit_s: float = 5.0) -> None:
    assert callable(true)
    async with asyncio.timeout(limit_s):
        while not true():
            await asyncio.sleep(0.005)


async def test_a_worker_that_answers_at_once_whatever_it_is_asked_is_not_asked_all_the_time(w1: ScriptedWorker) -> None:
    here = Gathering(w1, clock=time.monotonic, heartbeat_s=0.2)
    status = w1.status
    w1.status = lambda after=-1, wait_s=0.0: status(-1, 0.0)  # type: ignore[method-assign]
    async with here.running():
        await here.announce("w1")
        await asyncio.sleep(0.5)
    assert w1.looks < 8


# --- what the fleet makes of it -------------------------------------------------------------------------------------


async def test_a_draining_worker_gets_nothing_new_and_stays(w1: ScriptedWorker) -> None:
    w2 = ScriptedWorker("w2", "demo")
    here = Gathering(w1, w2)
    first, _ = await here.all_announced()
    lease = here.fleet.lease(call())
    w1.becomes(WorkerState.DRAINING)
    await here.members.look(first)
    assert here.serving() == {"w2"}
    assert [each.standing for each in here.fleet.replicas] == ["draining", "ready"]
    w1.becomes(WorkerState.READY)
    await here.members.look(first)
    assert lease is not None
    lease.release()
    assert here.serving() == {"w1", "w2"}
    assert ("w1", "draining") in here.replicas_told


async def test_what_a_draining_worker_makes_way_for_is_waited_for_at_every_gateway(w1: ScriptedWorker) -> None:
    """Also under the same name: then nobody is refused, and the line does not prolong the drain."""
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.becomes(WorkerState.DRAINING, coming=("demo", "next"))
    await here.members.look(member)
    for model in ("demo", "next"):
        assert here.fleet.standing(model) == "coming"
        assert here.fleet.lease(call(model)) is None
    assert here.fleet.lease(call(), waited=True) is None
    w1.becomes(WorkerState.DRAINING, coming=())
    await here.members.look(member)
    assert here.fleet.standing("demo") == "leaving"


async def test_an_engine_that_was_started_again_is_another_replica_and_the_old_one_ends_with_its_last_call(
    w1: ScriptedWorker,
) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    lease = here.fleet.lease(call())
    assert lease is not None
    w1.serves(Order(model="demo"))
    await here.members.look(member)
    (replica,) = here.fleet.replicas
    assert replica is not lease.replica
    await here.seats.close_left()
    assert here.closed == []
    lease.release()
    await here.seats.close_left()
    assert here.closed == ["w1"]


async def test_calls_may_wait_for_a_model_that_loads_and_not_for_one_that_failed(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.becomes(WorkerState.LOADING, names=("next",), order=Order(model="next"), engine_url=None)
    await here.members.look(member)
    assert here.fleet.coming == ("next",)
    assert here.fleet.resolve("next") == here.fleet.resolve(None) == "next"
    assert here.fleet.lease(call("next")) is None
    assert here.fleet.slots("next") == SLOTS
    assert here.fleet.served == {}
    with pytest.raises(UnknownModel):
        here.fleet.resolve("demo")
    w1.becomes(WorkerState.FAILED, reason="exit code 1")
    await here.members.look(member)
    assert (here.fleet.resolve("next"), here.fleet.standing("next")) == ("next", "unavailable")
    with pytest.raises(NoReplica):
        here.fleet.lease(call("next"))


async def test_at_no_moment_of_a_restart_is_the_model_unknown(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    seen: list[str] = []
    here.fleet.on_change = lambda: seen.append(here.fleet.standing("demo"))
    w1.becomes(WorkerState.LOADING, engine_url=None, reason="It died.")
    await here.members.look(member)
    w1.serves(Order(model="demo"))
    await here.members.look(member)
    assert set(seen) == {"ready", "coming"}


async def test_how_long_a_load_takes_is_learned(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.becomes(WorkerState.LOADING, engine_url=None)
    await here.members.look(member)
    assert here.fleet.ready_at("demo") is None
    here.clock.advance(30)
    w1.serves(Order(model="demo"))
    await here.members.look(member)
    w1.becomes(WorkerState.LOADING, engine_url=None)
    await here.members.look(member)
    assert here.fleet.ready_at("demo") == here.clock() + 30


async def test_an_engine_that_the_gateway_cannot_reach_is_waited_for(w1: ScriptedWorker) -> None:
    w1.engine.die()
    here = Gathering(w1)
    member = await here.announce("w1")
    assert (member.ready, member.answers) == (True, False)
    assert here.fleet.lease(call()) is None
    w1.engine.revive()
    await here.members.look(member)
    assert member.answers
    assert here.serving() == {"w1"}


async def test_an_adapter_is_a_model_of_those_that_have_it(w1: ScriptedWorker) -> None:
    w2 = ScriptedWorker("w2", "demo")
    here = Gathering(w1, w2)
    first, _ = await here.all_announced()
    await w1.put_adapter(Adapter(name="tuned", path="/a"))
    await here.members.look(first)
    assert (here.serving("tuned"), here.serving("demo")) == ({"w1"}, {"w1", "w2"})
    await w1.drop_adapter("tuned")
    await here.members.look(first)
    with pytest.raises(UnknownModel):
        here.fleet.resolve("tuned")


async def test_news_that_come_late_change_nothing(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    old = w1.now
    w1.becomes(WorkerState.DRAINING)
    await here.members.look(member)
    await here.members._saw(member, old)
    assert member.state == "draining"


# --- what a worker served last --------------------------------------------------------------------------------------


async def test_one_that_comes_back_with_nothing_is_told_once_what_it_served(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.broken.add("demo")
    w1.returns("life-2")
    await here.members.look(member)
    assert [order.model for order in w1.loads] == ["demo"]
    await until(lambda: w1.now.state is WorkerState.FAILED)
    w1.empties()
    await here.members.look(member)
    assert len(w1.loads) == 1, "what it could not load it is not told again"


async def test_one_that_was_emptied_on_purpose_stays_empty(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.empties()
    await here.members.look(member)
    w1.returns("life-2")
    await here.members.look(member)
    assert w1.loads == []


async def test_one_that_was_released_from_here_stays_empty_whenever_it_comes_back(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    await here.members.release("w1", drain_s=0.0)
    w1.returns("life-2")
    await here.members.look(member)
    assert w1.loads == []


async def test_a_new_one_is_told_what_all_were_told_and_workers_themselves_remember_that() -> None:
    w1, w2 = ScriptedWorker("w1"), ScriptedWorker("w2")
    w1.serves(EVERYWHERE)
    here = Gathering(w1, w2)
    await here.all_announced()
    assert here.members.current == EVERYWHERE
    assert w2.loads == [EVERYWHERE]
    await w2.stop()


async def test_an_order_for_some_is_not_for_newcomers(w1: ScriptedWorker) -> None:
    w1.serves(Order(model="demo", id="some-1"))
    w2 = ScriptedWorker("w2")
    here = Gathering(w1, w2)
    await here.all_announced()
    assert (here.members.current, w2.loads) == (None, [])


async def test_nobody_is_told_anything_while_models_are_changed() -> None:
    w1, w2 = ScriptedWorker("w1"), ScriptedWorker("w2")
    w1.serves(EVERYWHERE)
    here = Gathering(w1, w2)
    rests = False

    async def at_rest() -> bool:
        return rests

    here.members.at_rest = at_rest
    _, second = await here.all_announced()
    assert w2.loads == []
    rests = True
    await here.members.look(second)
    assert w2.loads == [EVERYWHERE]
    await w2.stop()


async def test_one_that_could_not_be_told_is_told_with_the_next_look(w1: ScriptedWorker) -> None:
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.returns("life-2")
    load = w1.load

    async def lost(*_: object, **how: object) -> None:
        raise GONE

    w1.load = lost  # type: ignore[assignment]
    await here.members.look(member)
    w1.load = load  # type: ignore[method-assign]
    await here.members.look(member)
    assert [order.model for order in w1.loads] == ["demo"]
    await w1.stop()


# --- what gateways tell each other ----------------------------------------------------------------------------------


async def test_a_worker_registers_with_one_gateway_and_all_look_at_it(w1: ScriptedWorker) -> None:
    board = Board()
    one, other = (Gathering(w1, clock=time.monotonic, heartbeat_s=BRIEFLY_S, shared=board) for _ in range(2))
    async with one.running(), other.running():
        await one.announce("w1")
        await eventually(lambda: other.fleet.served)
        board.down = True
        board.addresses.clear()
        await asyncio.sleep(3 * BRIEFLY_S)
        assert other.serving() == one.serving() == {"w1"}, "without the store everybody goes on"
        board.down = False
        w1.becomes(WorkerState.STOPPED, engine_url=None)
        await eventually(lambda: not (one.fleet.replicas or other.fleet.replicas or board.addresses))


async def test_a_worker_in_this_process_is_a_member_and_no_address_for_others(w1: ScriptedWorker) -> None:
    board = Board()
    here = Gathering(w1, shared=board)
    member = await here.members.join(w1)
    assert here.serving() == {"w1"}
    await here.members._share()
    assert (board.addresses, member.fixed) == (set(), True)


async def test_progress_alone_changes_nothing_in_the_fleet(w1: ScriptedWorker) -> None:
    """A loading engine has news all the time; the index is not made anew for each."""
    here = Gathering(w1)
    member = await here.announce("w1")
    w1.becomes(WorkerState.LOADING, engine_url=None)
    await here.members.look(member)
    changes: list[int] = []
    here.fleet.on_change = lambda: changes.append(1)
    for part in range(10):
        w1.becomes(progress=Progress(step="loading", part=part / 10))
        await here.members.look(member)
    assert changes == []


@pytest.mark.parametrize("written", ["{}/current", "{}/current/", "{}/v1/../current", "{}/v1/sub/../../current"])
def test_a_link_to_a_folder_is_called_alike_by_its_worker_and_by_gateways(tmp_path: Path, written: str) -> None:
    (tmp_path / "v1" / "sub").mkdir(parents=True)
    (tmp_path / "current").symlink_to("v1")
    order = Order(model=written.format(tmp_path))
    assert Terms(Engine(), None).names(order) == names_of(order) == ("current",)
