"""A lease is a block: counted while it lasts, given back on every way out."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.replica import Lease, Replica, State
from app.engines.scripted import Scripted
from app.errors import EngineFailed
from app.reliability.limit import Load


@pytest.fixture
def replica() -> Replica:
    return Replica("a", Scripted())


def test_a_new_replica_is_starting_and_serves_nothing_yet(replica: Replica) -> None:
    assert (replica.state, replica.models, replica.running) == (State.STARTING, {}, 0)


def lease_on(replica: Replica) -> Lease:
    return Lease(replica, lambda freed: None)


def test_a_lease_is_counted_while_it_lasts(replica: Replica) -> None:
    with lease_on(replica):
        with lease_on(replica):
            assert replica.running == 2
        assert replica.running == 1
    assert replica.running == 0


@pytest.mark.parametrize("error", [EngineFailed(), ValueError(), KeyboardInterrupt(), GeneratorExit()])
def test_a_lease_ends_with_an_error_too_and_lets_it_pass(replica: Replica, error: BaseException) -> None:
    with pytest.raises(type(error)), lease_on(replica):
        raise error
    assert replica.running == 0


async def test_a_lease_ends_when_its_task_is_cancelled(replica: Replica) -> None:
    async def work() -> None:
        with lease_on(replica):
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(work()) for _ in range(10)]
    await asyncio.sleep(0)
    assert replica.running == 10
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert replica.running == 0


def test_a_lease_ends_where_its_block_is_left_early(replica: Replica) -> None:
    def early() -> int:
        for number in range(3):
            with lease_on(replica):
                if number == 1:
                    return number
        return -1

    assert early() == 1
    assert replica.running == 0


def test_a_lease_is_given_back_once_however_often_it_is_released(replica: Replica) -> None:
    lease = lease_on(replica)
    for _ in range(3):
        lease.release()
    assert replica.running == 0


@given(st.lists(st.tuples(st.floats(0, 1e7), st.integers(1, 16)), max_size=20), st.randoms(use_true_random=False))
def test_what_calls_cost_is_counted_while_they_last_and_nothing_is_left_over(
    calls: list[tuple[float, int]], dice: random.Random
) -> None:
    """Counters that drift are how routers come to avoid an idle replica for ever."""
    replica = Replica("a", Scripted())
    leases = [Lease(replica, lambda freed: None, cost, sequences) for cost, sequences in calls]
    assert replica.load == pytest.approx(sum(cost for cost, _ in calls), abs=len(calls))
    assert replica.sequences == sum(sequences for _, sequences in calls)
    dice.shuffle(leases)
    for lease in leases:
        lease.release()
        lease.release()
    assert (replica.load, replica.sequences, replica.running, replica.busy) == (0, 0, 0, 0)


def test_a_call_that_costs_nothing_is_still_a_call(replica: Replica) -> None:
    with Lease(replica, lambda freed: None, cost=0):
        assert replica.load == 1


def test_load_of_others_counts_with_ours_and_fades_when_it_is_not_told(replica: Replica) -> None:
    replica.slots = 10
    with Lease(replica, lambda freed: None, 1_000, 4):
        replica.told(Load(waiting=0, running=12, kv_share=None), tokens_each=250)
        assert (replica.load, replica.beside, replica.busy) == (1_000, 2_000, 300)
        replica.untold()
        assert (replica.load, replica.beside) == (1_000, 1_000)
    replica.begins_anew()
    assert (replica.load, replica.beside) == (0, 0)
