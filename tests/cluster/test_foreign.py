"""What an engine works on beside our calls: seen from its own account, and never taken for more than it tells."""

from hypothesis import given
from hypothesis import strategies as st

from app.cluster.foreign import FAR_MORE, Foreign
from app.reliability.limit import Load


def load(running: int, waiting: int = 0) -> Load:
    return Load(waiting=waiting, running=running, kv_share=None)


def test_what_no_lease_explains_is_somebody_elses() -> None:
    foreign = Foreign()
    foreign.ours(4)
    foreign.told(load(running=10, waiting=6), ours=4)
    assert foreign.sequences == 12


def test_an_engine_that_has_not_noticed_yet_that_ours_are_over_is_believed_a_look_later() -> None:
    foreign = Foreign()
    foreign.ours(10)
    foreign.told(load(10), ours=0)
    assert foreign.sequences == 0
    foreign.told(load(10), ours=0)
    assert foreign.sequences == 0
    foreign.told(load(10), ours=0)
    assert foreign.sequences == 10


def test_a_few_more_than_ours_are_ours() -> None:
    foreign = Foreign()
    foreign.ours(32)
    foreign.told(load(32 + 32 // FAR_MORE), ours=32)
    assert foreign.sequences == 0


def test_what_is_not_told_again_fades_and_what_is_told_again_does_not() -> None:
    foreign = Foreign()
    foreign.told(load(20), ours=0)
    for left in (10, 5, 2, 1, 0):
        foreign.untold()
        assert foreign.sequences == left
    for _ in range(5):
        foreign.told(load(20), ours=0)
        assert foreign.sequences == 20
    foreign.told(load(0), ours=0)
    assert foreign.sequences == 0


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)), max_size=20))
def test_it_is_never_less_than_nothing_nor_more_than_told(looks: list[tuple[int, int, int]]) -> None:
    foreign = Foreign()
    for running, waiting, ours in looks:
        foreign.ours(ours)
        foreign.told(load(running, waiting), ours)
        assert 0 <= foreign.sequences <= max(0, running + waiting - ours)
