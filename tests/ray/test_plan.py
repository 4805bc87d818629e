"""How many workers under which names, and what is said of them: from values alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.launchers.ray.plan import Changes, Deaths, Node, Waiting, cannot_reach, changes, in_words
from tests.support.clock import FakeClock

ONE = {"GPU": 1.0, "CPU": 1.0}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def node(gpus: float, cpus: float = 8.0) -> Node:
    return Node("id", "10.0.0.1", {"GPU": gpus, "CPU": cpus, "memory": 1e9})


def test_all_means_one_worker_for_each_gpu_group_that_a_node_holds() -> None:
    assert changes(None, [node(2), node(1)], ONE, {}).add == (0, 1, 2)
    assert changes(None, [node(3), node(1)], {"GPU": 2.0}, {}).add == (0,)
    assert changes(None, [node(8, cpus=2)], ONE, {}).add == (0, 1)


def test_a_number_is_asked_for_whether_there_is_room_or_not() -> None:
    assert changes(2, [], ONE, {}) == Changes(add=(0, 1), drop=())


def test_a_node_that_returns_gets_the_names_of_the_workers_it_took_along() -> None:
    seats = {0: False, 1: True}
    assert changes(None, [node(1)], ONE, seats) == Changes(add=(), drop=(0,))
    assert changes(None, [node(1), node(1)], ONE, {1: True}) == Changes(add=(0,), drop=())


def test_of_those_that_wait_the_last_are_dropped_first() -> None:
    assert changes(None, [node(1)], ONE, {0: False, 1: False, 2: False}).drop == (2, 1)


@given(
    st.dictionaries(st.integers(0, 9), st.booleans()),
    st.lists(st.integers(0, 4), max_size=4),
    st.none() | st.integers(0, 12),
)
def test_the_number_comes_out_right_and_nobody_loses_a_place(
    seats: dict[int, bool], gpus: list[int], wanted: int | None
) -> None:
    target = sum(gpus) if wanted is None else wanted
    todo = changes(wanted, [node(each) for each in gpus], ONE, seats)
    assert not any(seats[number] for number in todo.drop)
    assert not set(todo.add) & seats.keys()
    placed = sum(seats.values())
    assert len(seats) - len(todo.drop) + len(todo.add) == max(target, min(placed, len(seats)))


def test_fractions_of_resources_are_counted_as_ray_counts_them() -> None:
    assert Node("id", "10.0.0.1", {"CPU": 0.3}).room({"CPU": 0.1}) == 3


def test_the_pause_grows_with_each_death_and_a_long_life_forgives(clock: FakeClock) -> None:
    deaths = Deaths(clock)
    assert deaths.is_over
    assert [deaths.pause_after(1.0) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert not deaths.is_over
    clock.advance(30)
    assert deaths.is_over
    assert deaths.pause_after(60.0) == 0.5


def test_that_some_wait_is_said_once_until_it_changes(clock: FakeClock) -> None:
    waiting = Waiting({"GPU": 1.0}, clock)
    assert waiting.sentence(1, 3) is None
    clock.advance(3)
    assert waiting.sentence(1, 3) == "1 of 3 workers have a place; the others wait for a node with 1 GPU free."
    clock.advance(60)
    assert waiting.sentence(1, 3) is None
    assert waiting.sentence(2, 3) is None
    clock.advance(3)
    assert waiting.sentence(2, 3)
    assert waiting.sentence(3, 3) is None
    clock.advance(60)
    assert waiting.sentence(3, 3) is None


def test_a_cluster_without_any_room_is_waited_for(clock: FakeClock) -> None:
    waiting = Waiting({"GPU": 2.0}, clock)
    waiting.sentence(0, 0)
    clock.advance(3)
    assert waiting.sentence(0, 0) == "Waiting for a node with 2 GPUs free."


def test_needs_are_said_as_people_do() -> None:
    assert in_words({"CPU": 2.0}) == "2 CPUs"
    assert in_words({"GPU": 1.0, "CPU": 1.0, "fast_disk": 0.5}) == "1 GPU, 1 CPU and 0.5 fast_disk"


@pytest.mark.parametrize(
    ("node_address", "gateway", "cannot"),
    [
        ("10.0.0.2", "http://127.0.0.1:8000", True),
        ("10.0.0.2", "http://localhost:8000", True),
        ("10.0.0.2", "http://10.0.0.1:8000", False),
        ("10.0.0.2", "https://gateway.example", False),
        ("10.0.0.1", "http://127.0.0.1:8000", False),
        ("127.0.0.2", "http://127.0.0.1:8000", False),
    ],
)
def test_a_gateway_on_loopback_is_out_of_reach_for_other_machines(
    node_address: str, gateway: str, cannot: bool
) -> None:
    assert cannot_reach(node_address, [gateway], here="10.0.0.1") is cannot
