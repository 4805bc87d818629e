"""A lease is a block: counted while it lasts, given back on every way out."""

import asyncio

import pytest

from app.cluster.replica import Lease, Replica, State
from app.engines.scripted import Scripted
from app.errors import EngineFailed


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
