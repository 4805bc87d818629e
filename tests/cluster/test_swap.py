"""Another model on several workers: all of them or none, and who says what meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from typing import Self

import pytest

from app.cluster import turn as turns
from app.cluster.control import Adapter, Order, WorkerState
from app.cluster.progress import Outcome
from app.cluster.swap import Swap, Wish, explained
from app.errors import (
    ClusterError,
    InvalidRequest,
    LoadInProgress,
    NoReplica,
    NoWorkers,
    UnknownWorker,
    WorkerUnreachable,
)
from app.telemetry.base import SwapBegan, SwapEnded
from tests.cluster.gathering import BRIEFLY_S, Board, Gathering, call
from tests.support.workers import TAIL, ScriptedWorker

NEXT = Wish(Order(model="next"))


class ANewYear(datetime):
    """As a machine has it whose clock has no battery."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(1970, 1, 1, tzinfo=tz)


@asynccontextmanager
async def cluster(*workers: ScriptedWorker, board: Board | None = None) -> AsyncIterator[Gathering]:
    here = Gathering(*workers, clock=time.monotonic, heartbeat_s=BRIEFLY_S, turn=board)
    async with here.running():
        await here.all_announced()
        yield here


async def carried_out(here: Gathering, wish: Wish = NEXT) -> Swap:
    swap = await here.swaps.begin(wish)
    async with asyncio.timeout(10):
        await swap.feed.ended()
    return swap


async def eventually(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.002)


def serving(*names: str, model: str = "demo") -> list[ScriptedWorker]:
    return [ScriptedWorker(name, model) for name in names]


def models(workers: list[ScriptedWorker]) -> list[str | None]:
    return [each.now.order.model if each.now.order else None for each in workers]


# --- all of them ----------------------------------------------------------------------------------------------------


async def test_all_serve_the_other_model_in_the_end_and_the_fleet_knows() -> None:
    workers = serving("w1", "w2", "w3")
    async with cluster(*workers) as here:
        swap = await carried_out(here)
        assert (swap.outcome, swap.failure) == (Outcome.DONE, None)
        assert models(workers) == ["next"] * 3
        assert here.serving("next") == {"w1", "w2", "w3"}
        assert here.fleet.served.keys() == {"next"}
        assert [each.id for worker in workers for each in worker.loads] == [swap.id] * 3
        assert {each.step for each in swap.account().workers} == {"ready"}
        assert here.members.current is not None
        assert here.members.current.id == swap.id
    began, ended = (each for each in here.recorder.events if isinstance(each, SwapBegan | SwapEnded))
    assert began == SwapBegan(swap.id, "next", 3)
    assert isinstance(ended, SwapEnded)
    assert (ended.id, ended.outcome, ended.reason) == (swap.id, "done", "")


async def test_the_empty_go_first_then_one_alone_then_as_many_as_may() -> None:
    workers = [*serving("w1", "w2", "w3", "w4"), ScriptedWorker("e1"), ScriptedWorker("e2")]
    async with cluster(*workers) as here:
        for each in workers:
            each.gate.clear()
        swap = await here.swaps.begin(NEXT)
        assert swap.rounds == (("e1", "e2"), ("w1",), ("w2", "w3"), ("w4",))
        for names in swap.rounds:
            expected = {*names, *(each.name for each in workers if each.gate.is_set())}
            await eventually(lambda expected=expected: {each.name for each in workers if each.loads} == expected)  # type: ignore[misc]
            await asyncio.sleep(2 * BRIEFLY_S)
            assert {each.name for each in workers if each.loads} == expected
            assert sum(each.now.state is WorkerState.READY for each in workers[:4]) >= 2
            for each in workers:
                if each.name in names:
                    each.gate.set()
        await swap.feed.ended()
        assert swap.outcome is Outcome.DONE


async def test_those_that_serve_it_already_are_left_in_peace_unless_forced() -> None:
    workers = [ScriptedWorker("w1", "next"), ScriptedWorker("w2", "demo")]
    async with cluster(*workers) as here:
        swap = await carried_out(here)
        assert (swap.rounds, workers[0].loads) == ((("w2",),), [])
        assert [(each.worker, each.step) for each in swap.account().workers] == [("w2", "ready"), ("w1", "skipped")]
        await carried_out(here, Wish(Order(model="next"), force=True))
        assert [len(each.loads) for each in workers] == [1, 2]


async def test_workers_can_be_named_or_counted() -> None:
    workers = serving("w1", "w2", "w3")
    async with cluster(*workers) as here:
        await carried_out(here, Wish(Order(model="next"), workers=("w2",)))
        assert models(workers) == ["demo", "next", "demo"]
        assert here.members.current is None, "an order for some is not for all that come"
        await carried_out(here, Wish(Order(model="next"), count=2))
        assert models(workers) == ["next", "next", "demo"]
        with pytest.raises(UnknownWorker):
            await here.swaps.begin(Wish(Order(model="x"), workers=("w2", "w9")))
        with pytest.raises(InvalidRequest, match="3 replicas are serving"):
            await here.swaps.begin(Wish(Order(model="x"), floor=3))
        with pytest.raises(NoWorkers):
            await here.swaps.begin(Wish(Order(model="x"), count=4))
        assert (await carried_out(here, Wish(Order(model="demo")))).outcome is Outcome.DONE, "a refusal holds nothing"


async def test_where_nobody_is_the_wish_is_kept_for_those_that_come() -> None:
    worker = ScriptedWorker("w1")
    here = Gathering(worker, clock=time.monotonic, heartbeat_s=BRIEFLY_S)
    async with here.running():
        with pytest.raises(NoWorkers):
            await here.swaps.begin(NEXT)
        await here.announce("w1")
        assert [order.model for order in worker.loads] == ["next"]


async def test_newcomers_get_what_all_serve_already_until_all_are_emptied_by_whomever() -> None:
    workers = [*serving("w1"), ScriptedWorker("w2"), ScriptedWorker("w3")]
    here = Gathering(*workers, clock=time.monotonic, heartbeat_s=BRIEFLY_S)
    async with here.running():
        await here.announce("w1")
        swap = await carried_out(here, Wish(Order(model="demo")))
        assert (swap.rounds, swap.outcome) == ((), Outcome.DONE)
        await here.announce("w2")
        await eventually(lambda: here.serving() == {"w1", "w2"})
        for each in workers[:2]:
            await each.release(drain_s=0.0)
        await eventually(lambda: not here.fleet.replicas)
        await here.announce("w3")
        assert (here.members.current, workers[2].loads) == (None, [])


async def test_an_order_that_was_heard_twice_is_carried_out_once() -> None:
    """The first answer was lost; the second says that it is in progress."""
    (worker,) = serving("w1")
    load = worker.load

    async def twice(order: Order, *, drain_s: float, force: bool = False) -> object:
        await load(order, drain_s=drain_s, force=force)
        await eventually(lambda: worker.now.state is WorkerState.LOADING)
        return await load(order, drain_s=drain_s, force=force)

    worker.load = twice  # type: ignore[assignment]
    worker.gate.clear()
    async with cluster(worker) as here:
        swap = await here.swaps.begin(NEXT)
        await eventually(lambda: worker.now.state is WorkerState.LOADING)
        await asyncio.sleep(2 * BRIEFLY_S)
        worker.gate.set()
        await swap.feed.ended()
        assert (swap.outcome, len(worker.loads)) == (Outcome.DONE, 1)


# --- or none --------------------------------------------------------------------------------------------------------


async def test_a_canary_that_fails_ends_it_and_the_engines_last_lines_say_why() -> None:
    workers = serving("w1", "w2", "w3")
    workers[0].broken.add("next")
    async with cluster(*workers) as here:
        swap = await carried_out(here)
        assert swap.outcome is Outcome.FAILED
        assert models(workers) == ["demo"] * 3
        assert [len(each.loads) for each in workers] == [1, 0, 0]
        account = swap.account()
        assert (account.worker, account.reason, account.tail) == ("w1", "The engine ended: exit code 1.", TAIL)
        assert {each.worker: each.step for each in account.workers}["w1"] == "returned"
        assert here.serving() == {"w1", "w2", "w3"}
        assert swap.failure is not None
        assert explained(swap.failure).message.endswith("  | engine: out of memory")
        assert here.fleet.models.keys() == {"demo"}
    assert [each.outcome for each in here.recorder.events if isinstance(each, SwapEnded)] == ["failed"]


async def test_one_that_fails_late_takes_back_all_before_it() -> None:
    workers = [*serving("w1", "w2", "w3"), ScriptedWorker("e1")]
    workers[2].broken.add("next")
    former = workers[0].now.order
    async with cluster(*workers) as here:
        swap = await carried_out(here)
        assert swap.outcome is Outcome.FAILED
        assert models(workers) == ["demo", "demo", "demo", None]
        assert workers[0].now.order == former
        assert [each.now.state.value for each in workers] == ["ready", "ready", "ready", "empty"]
        assert workers[3].told[-1] == "release"
        assert here.members.current is None


async def test_a_clock_that_is_set_back_makes_no_later_order_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = serving("w1", "w2")
    async with cluster(*workers) as here:
        first = await carried_out(here)
        monkeypatch.setattr("app.cluster.swaps.datetime", ANewYear)
        second = await carried_out(here, Wish(Order(model="last")))
        assert second.id > first.id
        workers[0].returns("life-2")
        await eventually(lambda: models(workers) == ["last", "last"])
        assert here.members.current == second.wish.order


async def test_adapters_come_back_with_the_model() -> None:
    workers = serving("w1", "w2")
    workers[1].broken.add("next")
    adapter = Adapter(name="tuned", path="/a")
    await workers[0].put_adapter(adapter)
    async with cluster(*workers) as here:
        await carried_out(here)
        await eventually(lambda: here.fleet.standing("tuned") == "ready")
        assert workers[0].now.adapters == (adapter,)


async def test_whom_an_operator_keeps_out_is_kept_out_again() -> None:
    workers = serving("w1", "w2")
    workers[1].broken.add("next")
    async with cluster(*workers) as here:
        await workers[0].drain()
        await eventually(lambda: here.serving() == {"w2"})
        swap = await carried_out(here)
        assert [each.step for each in swap.account().workers] == ["returned", "returned"]
        assert models(workers) == ["demo", "demo"]
        await eventually(lambda: here.serving() == {"w2"})
        assert workers[0].now.state is WorkerState.DRAINING


async def test_one_that_is_drained_as_soon_as_it_is_ready_holds_nobody_up() -> None:
    workers = serving("w1", "w2")
    serves = workers[0].serves

    def and_is_drained(order: Order) -> None:
        serves(order)
        workers[0].becomes(WorkerState.DRAINING)

    workers[0].serves = and_is_drained  # type: ignore[method-assign]
    async with cluster(*workers) as here:
        swap = await carried_out(here)
        assert (swap.outcome, models(workers)) == (Outcome.DONE, ["next", "next"])
        assert here.serving("next") == {"w2"}


async def test_one_that_is_kept_out_and_returned_by_itself_is_left_so() -> None:
    workers = serving("w1", "w2")
    async with cluster(*workers) as here:
        await workers[0].drain()
        await eventually(lambda: here.serving() == {"w2"})
        workers[0].broken.add("next")
        swap = await carried_out(here)
        assert [each.step for each in swap.account().workers] == ["returned", "waiting"]
        assert [each.model for each in workers[0].loads] == ["next"]
        assert workers[0].now.state is WorkerState.DRAINING


async def test_a_worker_that_is_lost_or_started_anew_or_emptied_meanwhile_ends_it() -> None:
    def lost(worker: ScriptedWorker, here: Gathering) -> None:
        worker.dies(WorkerUnreachable())
        here.members.find("w1").seen_at -= 60

    def anew(worker: ScriptedWorker, here: Gathering) -> None:
        worker.returns("life-2")

    def emptied(worker: ScriptedWorker, here: Gathering) -> None:
        worker.empties()

    for harm, reason in ((lost, "w1 is lost"), (anew, "started anew"), (emptied, "told to give its GPUs back")):
        workers = serving("w1", "w2")
        workers[0].gate.clear()
        async with cluster(*workers) as here:
            swap = await here.swaps.begin(NEXT)
            await eventually(lambda w=workers[0]: w.now.state is WorkerState.LOADING)  # type: ignore[misc]
            await asyncio.sleep(2 * BRIEFLY_S)
            await workers[0].stop()
            harm(workers[0], here)
            workers[0].gate.set()
            async with asyncio.timeout(5):
                await swap.feed.ended()
            assert swap.outcome is Outcome.FAILED
            assert reason in swap.account().reason
            assert workers[1].loads == []


async def test_one_that_is_never_ready_ends_it_in_time() -> None:
    workers = serving("w1", "w2")
    workers[0].gate.clear()
    async with cluster(*workers) as here:
        swap = await here.swaps.begin(NEXT)
        swap._limit_s = 0.1
        async with asyncio.timeout(5):
            await eventually(lambda: workers[0].loads)
            await asyncio.sleep(0.15)
            workers[0].gate.set()
            await swap.feed.ended()
        assert "was not ready after 0.1 s" in swap.account().reason


async def test_what_cannot_be_given_back_is_said_and_the_others_are() -> None:
    workers = serving("w1", "w2", "w3", "w4")
    workers[3].broken.add("next")
    async with cluster(*workers) as here:
        swap = await here.swaps.begin(NEXT)
        await eventually(lambda: models(workers)[0] == "next")
        workers[0].broken.add("demo")
        async with asyncio.timeout(10):
            await swap.feed.ended()
        assert models(workers)[1:] == ["demo"] * 3
        left = {each.worker: each for each in swap.account().workers}["w1"]
        assert (left.step, left.said) == ("left", "The engine ended: exit code 1.")


# --- one at a time --------------------------------------------------------------------------------------------------


async def test_a_second_one_meanwhile_is_refused_here_and_at_the_other_gateways() -> None:
    board = Board()
    workers = serving("w1")
    workers[0].gate.clear()
    async with cluster(*workers, board=board) as here, cluster(*workers, board=board) as other:
        swap = await here.swaps.begin(NEXT)
        for gateway in (here, other):
            with pytest.raises(LoadInProgress) as caught:
                await gateway.swaps.begin(Wish(Order(model="third")))
            assert caught.value.retry_after
        assert not await other.members.at_rest()
        workers[0].gate.set()
        await swap.feed.ended()
        assert board.holder == ""
        assert (await carried_out(other, Wish(Order(model="third")))).outcome is Outcome.DONE


async def test_without_the_store_models_can_be_changed_all_the_same() -> None:
    board = Board()
    workers = serving("w1")
    async with cluster(*workers, board=board) as here:
        board.down = True
        assert (await carried_out(here)).outcome is Outcome.DONE


async def test_a_turn_that_another_gateway_has_taken_meanwhile_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "RENEWED_S", 0.01)
    board = Board()
    workers = serving("w1")
    workers[0].gate.clear()
    async with cluster(*workers, board=board) as here:
        swap = await here.swaps.begin(NEXT)
        await eventually(lambda: workers[0].now.state is WorkerState.LOADING)
        board.holder = "another"
        async with asyncio.timeout(5):
            await asyncio.sleep(0.05)
            workers[0].gate.set()
            await swap.feed.ended()
        assert (swap.outcome, board.holder) == (Outcome.CANCELLED, "another")
        assert models(workers) == ["demo"]


async def test_one_that_is_cancelled_gives_back_what_was_served() -> None:
    workers = serving("w1", "w2")
    workers[1].gate.clear()
    async with cluster(*workers) as here:
        swap = await here.swaps.begin(NEXT)
        await eventually(lambda: workers[1].now.state is WorkerState.LOADING)
        cancelling = asyncio.create_task(here.swaps.cancel())
        await eventually(lambda: "release" in workers[1].told)
        workers[1].gate.set()
        async with asyncio.timeout(5):
            assert await cancelling is swap
        assert swap.outcome is Outcome.CANCELLED
        assert models(workers) == ["demo", "demo"]
        assert here.serving() == {"w1", "w2"}


async def test_to_release_all_ends_what_is_being_loaded_and_nobody_gets_it_back() -> None:
    workers = serving("w1", "w2")
    workers[1].gate.clear()
    async with cluster(*workers) as here:
        swap = await here.swaps.begin(NEXT)
        await eventually(lambda: workers[1].now.state is WorkerState.LOADING)
        ended = await here.swaps.release_all(0.0)
        assert {name: not isinstance(how, ClusterError) for name, how in ended.items()} == {"w1": True, "w2": True}
        assert (swap.outcome, models(workers)) == (Outcome.CANCELLED, [None, None])
        await asyncio.sleep(3 * BRIEFLY_S)
        assert here.members.current is None
        assert models(workers) == [None, None]


# --- calls meanwhile ------------------------------------------------------------------------------------------------


async def test_calls_for_the_model_that_comes_wait_from_the_first_moment() -> None:
    workers = serving("w1", "w2")
    for each in workers:
        each.gate.clear()
    async with cluster(*workers) as here:
        swap = await here.swaps.begin(NEXT)
        assert here.fleet.lease(call("next")) is None
        await eventually(lambda: workers[0].now.state is WorkerState.LOADING)
        await asyncio.sleep(2 * BRIEFLY_S)
        assert here.fleet.lease(call("next")) is None
        assert here.serving("demo") == {"w2"}
        for each in workers:
            each.gate.set()
        await swap.feed.ended()
        assert here.serving("next") == {"w1", "w2"}


async def test_once_it_has_failed_nobody_waits_for_it_any_more() -> None:
    """Not even while those that had changed are given back what they served."""
    workers = serving("w1", "w2")
    workers[1].broken.add("next")
    async with cluster(*workers) as here:
        swap = await here.swaps.begin(NEXT)
        await eventually(lambda: models(workers)[0] == "next")
        workers[0].gate.clear()
        async with asyncio.timeout(5):
            while swap.outcome is not Outcome.RETURNING or workers[0].now.state is WorkerState.READY:
                await asyncio.sleep(0.002)
            await eventually(lambda: here.fleet.standing("demo") != "leaving")
            assert "next" not in here.fleet.coming
            with pytest.raises(NoReplica):
                here.fleet.lease(call("next"))
            workers[0].gate.set()
            await swap.feed.ended()
        assert here.fleet.coming == ()


async def test_who_follows_sees_each_step_and_the_end() -> None:
    workers = serving("w1")
    workers[0].gate.clear()
    async with cluster(*workers) as here:
        swap = await here.swaps.begin(NEXT)
        seen, steps = 0, []

        async def follow() -> None:
            nonlocal seen
            while True:
                seen, fresh = await swap.feed.after(seen)
                if not fresh:
                    return
                steps.extend(fresh)

        following = asyncio.create_task(follow())
        await eventually(lambda: any(each.step == "starting" for each in steps))
        workers[0].gate.set()
        async with asyncio.timeout(5):
            await following
    assert steps[0].step == "waiting"
    assert steps[-1].step == "ready"
    assert {each.worker for each in steps} == {"w1"}
