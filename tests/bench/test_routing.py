"""The simulation that compares policies: the same figures for the same seed, and a hot prefix in it."""

import random
from collections import Counter
from itertools import pairwise

from bench.figures import percentile
from bench.routing import KEEPING, Found, World, by_memory, conversations
from bench.scenario import Options

QUICK = Options(seconds=40, seed=3, quick=True)


def test_the_same_seed_gives_the_same_figures() -> None:
    one, other = [by_memory(QUICK, names_sessions=True) for _ in range(2)]
    assert [one[name].row(name) for name in KEEPING] == [other[name].row(name) for name in KEEPING]


def test_half_of_all_prompts_begin_alike() -> None:
    requests = conversations(random.Random(1), 60, 20, names_sessions=False)
    ((_, hot), *_) = Counter(request.steps[0] for request in requests).most_common()
    assert 0.4 < hot / len(requests) < 0.7
    assert all(one.at <= other.at for one, other in pairwise(requests))


def test_a_hot_prefix_is_found_cached_more_often_and_makes_no_replica_much_busier_than_the_rest() -> None:
    found = by_memory(QUICK, names_sessions=False)
    by_two, by_prefix = found["power_of_two"], found["prefix"]
    assert by_prefix.had / by_prefix.prompt > 1.3 * by_two.had / by_two.prompt
    assert by_prefix.mean_s < by_two.mean_s
    assert percentile(sorted(by_prefix.spread), 99) < 2


def test_a_simulated_world_ends_with_nothing_left_to_do() -> None:
    world = World("prefix", 2, 1, Found())
    world.run(conversations(random.Random(1), 20, 30, names_sessions=True))
    assert [engine.inside for engine in world.engines] == [0] * len(world.engines)
    assert [replica.load for fleet in world.gateways for replica in fleet.replicas] == [0] * 2 * len(world.engines)
