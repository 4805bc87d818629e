"""Prompts that begin alike meet, as long as that makes nobody far busier than the others."""

from hypothesis import given
from hypothesis import strategies as st

from app.cluster.replica import Replica
from app.gateway.routing import POLICIES, power_of_two, prefix
from app.gateway.routing.bounds import Bound
from app.telemetry.record import Reason
from tests.gateway.routing.places import call, calls, replicas, worlds

choose = prefix(power_of_two())

CHAIN = (11, 12, 13, 14)


def test_a_prompt_goes_where_most_of_its_beginning_has_been_read() -> None:
    fleet = replicas(500, 500, 500)
    fleet[0].prefixes.remember(CHAIN[:1])
    fleet[1].prefixes.remember(CHAIN[:3])
    assert choose(fleet, call(prefix=CHAIN)) == (fleet[1], Reason.PREFIX)


def test_among_those_that_have_read_as_much_the_less_busy_one_answers() -> None:
    fleet = replicas(600, 500, 400)
    for replica in fleet[:2]:
        replica.prefixes.remember(CHAIN)
    assert choose(fleet, call(prefix=CHAIN)) == (fleet[1], Reason.PREFIX)


def test_a_hot_prefix_does_not_make_its_replica_hotter() -> None:
    fleet = replicas(2_000, 1_000, 1_000)
    fleet[0].prefixes.remember(CHAIN)
    chosen, reason = choose(fleet, call(prefix=CHAIN))
    assert chosen is not fleet[0]
    assert reason is Reason.PREFIX_AWAY


def test_where_the_best_has_too_much_to_do_the_next_best_is_still_a_hit() -> None:
    fleet = replicas(2_000, 1_000, 1_000)
    fleet[0].prefixes.remember(CHAIN)
    fleet[2].prefixes.remember(CHAIN[:2])
    assert choose(fleet, call(prefix=CHAIN)) == (fleet[2], Reason.PREFIX)


@given(worlds(), calls)
def test_nothing_that_a_replica_remembers_takes_it_beyond_the_bound(world: list[Replica], asked: object) -> None:
    chosen, reason = POLICIES["prefix"]()(world, asked)  # type: ignore[arg-type]
    assert reason is Reason.LOAD or Bound(world).allows(chosen)


@given(worlds(), st.integers(0, 6))
def test_a_hit_is_told_only_where_something_was_read(world: list[Replica], steps: int) -> None:
    chain = tuple(range(1, 1 + steps))
    chosen, reason = choose(world, call(prefix=chain))
    read = chosen.prefixes.known(chain)
    assert (reason is Reason.PREFIX) == (read > 0) or reason is Reason.PREFIX_AWAY
    assert reason is not Reason.PREFIX_AWAY or any(replica.prefixes.known(chain) for replica in world)


def test_a_session_goes_before_a_prefix() -> None:
    fleet = replicas(*[0] * 8)
    whole = POLICIES["prefix"]()
    home, _ = whole(fleet, call("s"))
    other = next(replica for replica in fleet if replica is not home)
    other.prefixes.remember(CHAIN)
    assert whole(fleet, call("s", prefix=CHAIN)) == (home, Reason.SESSION)
    assert whole(fleet, call(prefix=CHAIN)) == (other, Reason.PREFIX)


def test_a_prompt_that_nobody_has_read_goes_by_load() -> None:
    fleet = replicas(9, 0)
    assert choose(fleet, call(prefix=CHAIN)) == (fleet[1], Reason.LOAD)
    assert choose(fleet, call()) == (fleet[1], Reason.LOAD)
