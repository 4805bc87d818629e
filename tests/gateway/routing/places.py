"""Replicas in the states that policies look at."""

import random
from collections.abc import Callable

from hypothesis import strategies as st

from app.cluster.fleet import Policy
from app.cluster.replica import Replica
from app.engines.scripted import Scripted
from app.gateway.routing import least_load, power_of_two, prefix, round_robin, session
from app.generation import Call, Route
from app.tenant import Tenant

SLOTS = 32


def replicas(*loads: int, slots: int = SLOTS, running: int = SLOTS // 2) -> list[Replica]:
    """Named r0, r1, …; each has enough to do not to be at ease."""
    made = [Replica(f"r{index}", Scripted(), slots=slots) for index in range(len(loads))]
    for replica, load in zip(made, loads, strict=True):
        replica.load, replica.running = load, running
    return made


def call(session: str = "", prefix: tuple[int, ...] = (), tenant: str = "t") -> Call:
    return Call(
        id="r",
        route=Route.CHAT,
        model="demo",
        body=b"{}",
        expires_at=0,
        session=session,
        prefix=prefix,
        tenant=Tenant(tenant),
    )


def seeded(seed: int) -> dict[str, Callable[[], Policy]]:
    """Every policy as the settings make it, with dice of our own."""
    return {
        "session": lambda: session(power_of_two(random.Random(seed).random)),
        "prefix": lambda: session(prefix(power_of_two(random.Random(seed).random))),
        "power_of_two": lambda: power_of_two(random.Random(seed).random),
        "least_load": least_load,
        "round_robin": round_robin,
    }


@st.composite
def worlds(draw: st.DrawFn) -> list[Replica]:
    """Any fleet: loads, foreign loads, sizes, and what each has read."""
    loads = draw(st.lists(st.integers(0, 100_000), min_size=1, max_size=8))
    made = replicas(*loads)
    for replica in made:
        replica.slots = draw(st.integers(1, 64))
        replica.running = draw(st.integers(0, replica.slots))
        replica.beside = draw(st.integers(0, 10_000))
        replica.prefixes.remember(range(1, 1 + draw(st.integers(0, 5))))
    return made


calls = st.builds(
    call,
    session=st.sampled_from(["", "a", "b", "c"]),
    prefix=st.integers(0, 6).map(lambda steps: tuple(range(1, 1 + steps))),
)
