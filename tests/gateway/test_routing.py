"""Policies of routing: which of the candidates answers. Pure choices: nothing but a policy's own turn changes."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.replica import Replica
from app.engines.scripted import Scripted
from app.gateway.routing import POLICIES, least_load, round_robin
from app.generation import Call, Route
from app.settings import Settings

CALL = Call(id="r", route=Route.CHAT, model="demo", body=b"{}", expires_at=0)


def replicas(*running: int) -> list[Replica]:
    made = [Replica(f"r{index}", Scripted()) for index in range(len(running))]
    for replica, count in zip(made, running, strict=True):
        replica.running = count
    return made


@given(st.integers(1, 8), st.integers(1, 10))
def test_round_robin_gives_everyone_the_same_number_of_turns(count: int, rounds: int) -> None:
    candidates, choose = replicas(*[0] * count), round_robin()
    chosen = Counter(choose(candidates, CALL).name for _ in range(count * rounds))
    assert set(chosen.values()) == {rounds}
    assert len(chosen) == count


def test_round_robin_looks_at_nothing_but_turns() -> None:
    candidates, choose = replicas(100, 0, 50), round_robin()
    assert [choose(candidates, CALL).name for _ in range(4)] == ["r0", "r1", "r2", "r0"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.integers(0, 20))
def test_least_load_chooses_one_of_the_least_loaded(running: list[int], turns: int) -> None:
    candidates, choose = replicas(*running), least_load()
    for _ in range(turns):
        choose(candidates, CALL)
    assert choose(candidates, CALL).running == min(running)


def test_among_equals_least_load_takes_turns() -> None:
    candidates, choose = replicas(0, 0, 0), least_load()
    assert [choose(candidates, CALL).name for _ in range(6)] == ["r0", "r1", "r2", "r0", "r1", "r2"]


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_under_any_mix_of_comings_and_goings_nobody_gets_more_while_another_has_less(comings: list[bool]) -> None:
    candidates, choose = replicas(0, 0, 0), least_load()
    inside: list[Replica] = []
    for comes in comings:
        if comes or not inside:
            chosen = choose(candidates, CALL)
            assert chosen.running == min(replica.running for replica in candidates)
            chosen.running += 1
            inside.append(chosen)
        else:
            inside.pop(0).running -= 1


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_changes_nothing_that_it_looks_at(policy: str) -> None:
    candidates, choose = replicas(2, 0, 1), POLICIES[policy]()
    before = [(replica.name, replica.running, replica.state) for replica in candidates]
    for _ in range(10):
        assert choose(candidates, CALL) in candidates
    assert [(replica.name, replica.running, replica.state) for replica in candidates] == before


@pytest.mark.parametrize("policy", POLICIES)
def test_two_fleets_do_not_share_their_turns(policy: str) -> None:
    candidates = replicas(0, 0)
    one, other = POLICIES[policy](), POLICIES[policy]()
    assert one(candidates, CALL) is other(candidates, CALL)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_copes_with_candidates_that_come_and_go(policy: str) -> None:
    candidates, choose = replicas(0, 0, 0), POLICIES[policy]()
    for count in (3, 1, 2, 3, 1):
        assert choose(candidates[:count], CALL) in candidates[:count]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_can_be_named_in_the_settings(policy: str) -> None:
    assert Settings.load(env={}, env_file=None, ROUTING_POLICY=policy).routing.policy == policy
