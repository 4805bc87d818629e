"""What holds for every policy, and what for those that look at nothing but load."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.replica import Lease, Replica
from app.gateway.routing import LOOKS_AT_LOAD, POLICIES, READS_PROMPTS, least_load, power_of_two, round_robin
from app.settings import Settings
from app.telemetry.record import Reason
from tests.gateway.routing.places import call, calls, replicas, seeded, worlds

CALL = call()


@pytest.mark.parametrize("policy", POLICIES)
@given(world=worlds(), asked=calls, seed=st.integers(0, 5))
def test_every_choice_is_a_candidate_and_has_a_reason(
    policy: str, world: list[Replica], asked: object, seed: int
) -> None:
    chosen, reason = seeded(seed)[policy]()(world, asked)  # type: ignore[arg-type]
    assert chosen in world
    assert reason in Reason


@pytest.mark.parametrize("policy", POLICIES)
@given(world=worlds(), asked=st.lists(calls, max_size=5), seed=st.integers(0, 5))
def test_a_seed_and_a_world_make_the_same_choices_again(
    policy: str, world: list[Replica], asked: list[object], seed: int
) -> None:
    one, other = seeded(seed)[policy](), seeded(seed)[policy]()
    for each in asked:
        assert one(world, each) == other(world, each)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_changes_nothing_that_it_looks_at(policy: str) -> None:
    candidates, choose = replicas(2, 0, 1), POLICIES[policy]()
    candidates[0].prefixes.remember((1, 2))

    def seen() -> list[tuple[int, int, int]]:
        return [(replica.load, replica.running, len(replica.prefixes)) for replica in candidates]

    before = seen()
    for asked in (CALL, call(session="s"), call(prefix=(1, 2, 3))):
        choose(candidates, asked)
    assert seen() == before


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_copes_with_candidates_that_come_and_go(policy: str) -> None:
    candidates, choose = replicas(0, 0, 0), POLICIES[policy]()
    for count in (3, 1, 2, 3, 1):
        assert choose(candidates[:count], CALL)[0] in candidates[:count]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_can_be_named_in_the_settings(policy: str) -> None:
    assert Settings.load(env={}, env_file=None, ROUTING_POLICY=policy).routing.policy == policy


def test_unless_told_otherwise_sessions_stay_and_all_else_goes_to_the_less_busy_of_two() -> None:
    assert Settings.load(env={}, env_file=None).routing.policy == "session"
    by_default, by_two = seeded(3)["session"](), seeded(3)["power_of_two"]()
    fleet = replicas(5, 3, 9, 1)
    assert [by_default(fleet, CALL) for _ in range(50)] == [by_two(fleet, CALL) for _ in range(50)]


def test_what_a_policy_needs_is_told_for_policies_that_there_are() -> None:
    assert POLICIES.keys() >= READS_PROMPTS | LOOKS_AT_LOAD


# --- in turn ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 8), st.integers(1, 10))
def test_round_robin_gives_everyone_the_same_number_of_turns(count: int, rounds: int) -> None:
    candidates, choose = replicas(*[0] * count), round_robin()
    chosen = Counter(choose(candidates, CALL)[0].name for _ in range(count * rounds))
    assert set(chosen.values()) == {rounds}
    assert len(chosen) == count


def test_round_robin_looks_at_nothing_but_turns() -> None:
    candidates, choose = replicas(100, 0, 50), round_robin()
    assert [choose(candidates, CALL)[0].name for _ in range(4)] == ["r0", "r1", "r2", "r0"]


@pytest.mark.parametrize("policy", ["round_robin", "least_load"])
def test_two_fleets_do_not_share_their_turns(policy: str) -> None:
    candidates = replicas(0, 0)
    assert POLICIES[policy]()(candidates, CALL) == POLICIES[policy]()(candidates, CALL)


# --- by load ----------------------------------------------------------------------------------------------------------


@given(worlds(), st.integers(0, 20))
def test_least_load_chooses_one_of_the_least_busy(world: list[Replica], turns: int) -> None:
    choose = least_load()
    for _ in range(turns):
        choose(world, CALL)
    assert choose(world, CALL)[0].busy == min(replica.busy for replica in world)


def test_among_equals_least_load_takes_turns() -> None:
    candidates, choose = replicas(0, 0, 0), least_load()
    assert [choose(candidates, CALL)[0].name for _ in range(6)] == ["r0", "r1", "r2", "r0", "r1", "r2"]


def test_load_is_counted_in_tokens_for_each_slot_and_not_in_calls() -> None:
    one_long, many_short = replicas(50_000, 3_000)
    one_long.running, many_short.running = 1, 30
    assert least_load()([one_long, many_short], CALL)[0] is many_short
    one_long.slots = 32 * 20
    assert least_load()([one_long, many_short], CALL)[0] is one_long


def test_what_others_have_an_engine_do_counts_too() -> None:
    ours, shared = replicas(5_000, 1_000)
    shared.beside = 10_000
    for choose in (least_load(), power_of_two()):
        assert choose([ours, shared], CALL)[0] is ours


@given(worlds(), st.integers(0, 1_000))
def test_of_many_power_of_two_never_takes_the_busiest_alone(world: list[Replica], seed: int) -> None:
    busiest = max(replica.busy for replica in world)
    if sum(replica.busy == busiest for replica in world) == 1 < len(world):
        assert seeded(seed)["power_of_two"]()(world, CALL)[0].busy < busiest


def test_power_of_two_sees_every_pair() -> None:
    candidates, choose = replicas(0, 1, 2, 3), seeded(1)["power_of_two"]()
    chosen = Counter(choose(candidates, CALL)[0].load for _ in range(6_000))
    assert [round(chosen[load] / 1_000) for load in range(4)] == [3, 2, 1, 0]


@given(st.integers(0, 200))
def test_sixty_four_calls_on_eight_replicas_are_nearly_as_even_by_two_as_by_all(seed: int) -> None:
    def most(policy: str) -> int:
        candidates, choose = replicas(*[0] * 8, running=0), seeded(seed)[policy]()
        for _ in range(64):
            chosen, reason = choose(candidates, CALL)
            Lease(chosen, lambda replica: None, 1_000, 1, reason)
        return max(replica.running for replica in candidates)

    assert most("least_load") == 8
    assert most("power_of_two") <= 11
