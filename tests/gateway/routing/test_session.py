"""A session lives on one replica, for as long as that has room and is not far above the others."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.cluster.replica import Replica
from app.gateway.routing import power_of_two, session
from app.gateway.routing.bounds import Bound
from app.telemetry.record import Reason
from tests.gateway.routing.places import SLOTS, call, replicas, worlds

MANY = 2_000

choose = session(power_of_two())
names = st.text("abcdef0123456789-", min_size=1, max_size=20)


def homes(fleet: list[Replica], sessions: int = MANY) -> list[Replica]:
    return [choose(fleet, call(f"s{number}"))[0] for number in range(sessions)]


@given(names, st.permutations(range(6)))
def test_a_session_stays_whatever_the_order_of_candidates(name: str, order: list[int]) -> None:
    fleet = replicas(*[0] * 6)
    home = choose(fleet, call(name))
    assert home[1] is Reason.SESSION
    assert choose([fleet[index] for index in order], call(name)) == home


def test_gateways_that_know_nothing_of_each_other_agree() -> None:
    assert [one.name for one in homes(replicas(0, 0, 0))] == [other.name for other in homes(replicas(5, 5, 5))]


def test_where_a_session_lives_does_not_change_with_a_release() -> None:
    """Gateways of different age may share a fleet: these names are a promise."""
    told = " ".join(home.name for home in homes(replicas(0, 0, 0, 0), 8))
    assert told == "r0 r0 r2 r1 r0 r3 r1 r0"


def test_sessions_are_spread_evenly() -> None:
    counts = Counter(home.name for home in homes(replicas(*[0] * 8), 8_000))
    assert len(counts) == 8
    assert all(850 < count < 1_150 for count in counts.values())


def test_a_replica_more_takes_its_share_of_sessions_and_moves_no_other() -> None:
    fleet = replicas(*[0] * 5)
    before, after = homes(fleet[:4]), homes(fleet)
    moved = [new for old, new in zip(before, after, strict=True) if old is not new]
    assert {replica.name for replica in moved} == {"r4"}
    assert 0.8 < len(moved) / (MANY / 5) < 1.2


def test_a_replica_less_gives_its_sessions_to_all_others_and_gets_them_back() -> None:
    fleet = replicas(*[0] * 5)
    before, without = homes(fleet), homes(fleet[:4])
    for old, new in zip(before, without, strict=True):
        assert new is old or old is fleet[4]
    heirs = Counter(new.name for old, new in zip(before, without, strict=True) if old is fleet[4])
    assert len(heirs) == 4
    assert homes(fleet) == before


@given(worlds(), names)
def test_no_session_goes_beyond_the_bound(world: list[Replica], name: str) -> None:
    chosen, reason = choose(world, call(name))
    assert Bound(world).allows(chosen)
    assert reason in (Reason.SESSION, Reason.SESSION_AWAY)


def test_a_session_goes_to_its_next_replica_while_its_own_is_far_above_the_mean_and_comes_back() -> None:
    fleet = replicas(1_000, 1_000, 1_000, 1_000)
    home, reason = choose(fleet, call("s"))
    assert reason is Reason.SESSION
    home.load = 2_000
    away, reason = choose(fleet, call("s"))
    assert away is not home
    assert reason is Reason.SESSION_AWAY
    assert choose(fleet, call("s"))[0] is away, "the next in its order, not any"
    home.load = 1_250
    assert choose(fleet, call("s")) == (home, Reason.SESSION)


def test_where_little_is_going_on_a_session_need_not_move_for_one_running_call() -> None:
    fleet = replicas(0, 0, 0, 0, running=0)
    home, _ = choose(fleet, call("s"))
    home.load, home.running = 8_000, SLOTS // 8 - 1
    assert choose(fleet, call("s")) == (home, Reason.SESSION)
    home.foreign.sequences = 1
    assert choose(fleet, call("s"))[1] is Reason.SESSION_AWAY


def test_tenants_do_not_share_sessions() -> None:
    fleet = replicas(*[0] * 8)
    one = [choose(fleet, call(f"s{number}", tenant="a"))[0] for number in range(80)]
    other = [choose(fleet, call(f"s{number}", tenant="b"))[0] for number in range(80)]
    assert sum(a is b for a, b in zip(one, other, strict=True)) < 30


def test_without_a_session_load_decides() -> None:
    fleet = replicas(9, 0)
    assert choose(fleet, call()) == (fleet[1], Reason.LOAD)
