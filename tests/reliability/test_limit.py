"""How an engine's limit follows what it tells of itself."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reliability.limit import AdaptiveLimit, Load

CALM = Load(waiting=0, running=10, kv_share=0.5)
QUEUEING = Load(waiting=3, running=10, kv_share=0.5)


def limit_of(start: int = 10, lowest: int = 1, highest: int = 100) -> AdaptiveLimit:
    return AdaptiveLimit(start, lowest, highest)


def test_it_starts_within_its_bounds() -> None:
    assert [limit_of(start, 2, 20).limit for start in (1, 10, 50)] == [2, 10, 20]


def test_it_grows_when_more_is_wanted_and_the_engine_could() -> None:
    limit = limit_of(10)
    assert [limit.observe(CALM, limit.limit, wanted=True) for _ in range(3)] == [11, 12, 13]
    assert limit_of(60).observe(CALM, 60, wanted=True) == 63


@pytest.mark.parametrize(
    ("load", "in_flight", "wanted"),
    [
        (CALM, 10, False),
        (CALM, 9, True),
        (Load(1, 10, 0.5), 10, True),
        (Load(0, 10, 0.85), 10, True),
        (Load(0, 10, 0.94), 10, True),
    ],
    ids=["nobody waits", "not at the limit", "the engine queues", "its cache fills", "its cache is almost full"],
)
def test_otherwise_it_stays(load: Load, in_flight: int, wanted: bool) -> None:
    assert limit_of(10).observe(load, in_flight, wanted) == 10


def test_an_engine_that_tells_nothing_of_its_cache_may_grow() -> None:
    assert limit_of(10).observe(Load(0, 10, None), 10, wanted=True) == 11


def test_an_engine_that_queues_at_two_looks_in_a_row_gets_less() -> None:
    limit = limit_of(20)
    looks = [QUEUEING, CALM, QUEUEING, QUEUEING, QUEUEING, QUEUEING]
    assert [limit.observe(load, 5, wanted=False) for load in looks] == [20, 20, 20, 18, 18, 16]


def test_a_full_cache_is_enough_at_once() -> None:
    assert limit_of(20).observe(Load(0, 10, 0.95), 20, wanted=True) == 18


def test_it_waits_until_a_decrease_has_come_through() -> None:
    limit = limit_of(20)
    full = Load(5, 15, 0.99)
    assert limit.observe(full, 20, wanted=True) == 18
    assert [limit.observe(full, in_flight, wanted=True) for in_flight in (20, 20, 19)] == [18, 18, 18]
    assert limit.observe(full, 18, wanted=True) == 16


LOADS = st.builds(Load, st.integers(0, 5), st.integers(0, 100), st.none() | st.floats(0, 1))


@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.integers(20, 80),
    st.lists(st.tuples(LOADS, st.integers(-2, 2), st.booleans())),
)
def test_it_never_leaves_its_bounds(start: int, lowest: int, highest: int, looks: list[tuple[Load, int, bool]]) -> None:
    limit = AdaptiveLimit(start, lowest, highest)
    for load, off, wanted in looks:
        before = limit.limit
        after = limit.observe(load, max(0, before + off), wanted)
        assert lowest <= after <= highest
        assert after >= before * 9 // 10
        assert after <= before or (load.waiting == 0 and (load.kv_share or 0) < 0.85)


@dataclass
class Engine:
    """Runs as many as it has room for; each takes a while, as answers do."""

    slots: int
    blocks: int
    draw: random.Random
    left: list[int] = field(default_factory=list)
    """Of each request, in the order they came: steps still to run."""

    def load(self) -> Load:
        running = min(len(self.left), self.slots)
        return Load(len(self.left) - running, running, min(1.0, running / self.blocks))

    def fill(self, limit: int) -> None:
        self.left += [self.draw.randint(1, 60) for _ in range(limit - len(self.left))]

    def step(self) -> None:
        running, waiting = self.left[: self.slots], self.left[self.slots :]
        self.left = [each - 1 for each in running if each > 1] + waiting


@pytest.mark.parametrize("start", [1, 32, 256])
@pytest.mark.parametrize("capacity", [8, 50, 200])
def test_under_load_it_finds_what_the_engine_can_do_and_stays_there(start: int, capacity: int) -> None:
    engine = Engine(slots=capacity, blocks=10_000, draw=random.Random(start))
    limit = AdaptiveLimit(start, 1, 1_000)
    seen = []
    for _ in range(1_000):
        for _ in range(5):
            engine.fill(limit.limit)
            engine.step()
        engine.fill(limit.limit)
        seen.append(limit.observe(engine.load(), len(engine.left), wanted=True))
    assert 0.8 * capacity <= min(seen[500:]) <= max(seen[500:]) <= 1.2 * capacity


def test_where_the_cache_is_what_is_short_it_stays_below_that() -> None:
    engine = Engine(slots=1_000, blocks=100, draw=random.Random(1))
    limit = AdaptiveLimit(200, 1, 1_000)
    seen = []
    for _ in range(500):
        engine.fill(limit.limit)
        seen.append(limit.observe(engine.load(), len(engine.left), wanted=True))
        for _ in range(5):
            engine.step()
    assert 80 <= min(seen[250:]) <= max(seen[250:]) < 95


def test_two_gateways_come_to_share_an_engine_evenly() -> None:
    draw = random.Random(3)
    limits = [AdaptiveLimit(90, 1, 1_000), AdaptiveLimit(5, 1, 1_000)]
    ours: list[list[int]] = [[], []]
    seen: list[tuple[int, int]] = []
    for _ in range(2_000):
        for _ in range(5):
            for mine, limit in zip(ours, limits, strict=True):
                mine += [draw.randint(1, 60) for _ in range(limit.limit - len(mine))]
            total = len(ours[0]) + len(ours[1])
            share = min(1.0, 40 / total)
            ours = [[left - (draw.random() < share) for left in mine] for mine in ours]
            ours = [[left for left in mine if left > 0] for mine in ours]
        total = len(ours[0]) + len(ours[1])
        load = Load(max(0, total - 40), min(40, total), None)
        first, second = (limit.observe(load, len(mine), wanted=True) for mine, limit in zip(ours, limits, strict=True))
        seen.append((first, second))
    late = seen[1_000:]
    assert all(32 <= first + second <= 48 for first, second in late)
    assert all(first > 10 < second for first, second in late)
