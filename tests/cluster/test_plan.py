"""Who changes when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cluster.plan import Candidate, chosen_of, floor_of, rounds_of
from app.errors import InvalidRequest, NoWorkers

NAMES = st.integers(0, 40).map(lambda count: [f"w{number}" for number in range(count)])


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    return [Candidate(name, draw(st.booleans()), draw(st.booleans())) for name in draw(NAMES)]


@given(candidates(), st.integers(0, 40), st.integers(0, 60) | st.none())
def test_everybody_changes_once_the_first_alone_and_enough_go_on(
    chosen: list[Candidate], others: int, floor: int | None
) -> None:
    busy = {each.name for each in chosen if each.serving}
    serving = len(busy) + others
    try:
        least = floor_of(serving, floor)
    except InvalidRequest:
        assert floor is not None
        assert floor >= serving > 0
        return
    rounds = rounds_of(chosen, serving, floor)
    assert sorted(name for names in rounds for name in names) == sorted(each.name for each in chosen)
    assert all(rounds)
    changing = [set(names) & busy for names in rounds]
    assert all(serving - len(each) >= least or not each for each in changing)
    with_busy = [names for names, each in zip(rounds, changing, strict=True) if each]
    if with_busy:
        assert len(with_busy[0]) == 1, "the canary is alone"
    idle = {each.name for each in chosen if not each.serving}
    assert not idle or set(rounds[0]) == idle, "those that cost nothing go first"


@given(candidates(), st.integers(0, 40))
def test_as_few_rounds_as_the_floor_allows(chosen: list[Candidate], others: int) -> None:
    busy = sum(each.serving for each in chosen)
    rounds = rounds_of(chosen, busy + others)
    at_once = max(1, busy + others - floor_of(busy + others, None))
    canary_and_idle = bool(busy) + any(not each.serving for each in chosen)
    assert len(rounds) == canary_and_idle + -(-max(0, busy - 1) // at_once)


@pytest.mark.parametrize(("serving", "floor"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (7, 4)])
def test_half_of_those_that_serve_go_on_and_one_alone_cannot(serving: int, floor: int) -> None:
    assert floor_of(serving, None) == floor


def test_a_floor_that_nobody_could_keep_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="2 replicas are serving") as caught:
        floor_of(2, 2)
    assert caught.value.param == "floor"


def test_of_a_number_those_are_chosen_that_cost_least() -> None:
    present = [Candidate("busy", True), Candidate("empty", False), Candidate("done", True, done=True)]
    assert [[each.name for each in chosen_of(present, count)] for count in (1, 2, 3)] == [
        ["done"],
        ["done", "empty"],
        ["done", "empty", "busy"],
    ]
    assert chosen_of(present) == present
    with pytest.raises(NoWorkers, match="4 workers were asked for, and 3 are there"):
        chosen_of(present, 4)
    with pytest.raises(NoWorkers):
        chosen_of([])
