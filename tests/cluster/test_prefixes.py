"""What a replica has read lately: the beginnings of prompts, of which ends are forgotten first."""

from hypothesis import given
from hypothesis import strategies as st

from app.cluster.prefixes import Prefixes


def chain(name: int, length: int, shared: int = 0) -> tuple[int, ...]:
    """The first `shared` steps are the same for every name; from there on a step stands for all that came before it."""
    return tuple(step if step < shared else hash((name, shared, step)) for step in range(length))


def test_as_many_steps_are_known_as_two_prompts_have_in_common() -> None:
    prefixes = Prefixes()
    prefixes.remember(chain(1, 8, shared=3))
    assert prefixes.known(chain(1, 8, shared=3)) == 8
    assert prefixes.known(chain(1, 5, shared=3)) == 5
    assert prefixes.known(chain(2, 8, shared=3)) == 3
    assert prefixes.known(chain(2, 8)) == 0
    assert prefixes.known(()) == 0


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 4)), max_size=40),
    st.integers(1, 30),
    st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 4)),
)
def test_halving_finds_what_counting_finds_and_the_table_stays_bounded(
    read: list[tuple[int, int, int]], most: int, asked: tuple[int, int, int]
) -> None:
    prefixes = Prefixes(most)
    for each in read:
        prefixes.remember(chain(*each))
        assert len(prefixes) <= most
    wanted = chain(*asked)
    counted = next((n for n, step in enumerate(wanted) if not prefixes.known((step,))), len(wanted))
    assert prefixes.known(wanted) == counted


def test_what_was_read_longest_ago_is_forgotten_first_and_its_end_before_its_beginning() -> None:
    prefixes = Prefixes(most=10)
    prefixes.remember(chain(1, 6))
    prefixes.remember(chain(2, 6))
    assert (prefixes.known(chain(1, 6)), prefixes.known(chain(2, 6))) == (4, 6)
    prefixes.remember(chain(1, 1))
    prefixes.remember(chain(3, 3))
    assert (prefixes.known(chain(1, 6)), prefixes.known(chain(2, 6))) == (1, 6)


def test_all_can_be_forgotten_at_once() -> None:
    prefixes = Prefixes()
    prefixes.remember(chain(1, 6))
    prefixes.forget()
    assert prefixes.known(chain(1, 6)) == len(prefixes) == 0
