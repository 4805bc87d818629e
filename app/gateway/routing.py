"""Which replica answers: each policy is one function of the candidates and the call."""

import itertools
from collections.abc import Callable, Sequence

from app.cluster.fleet import Policy
from app.cluster.replica import Replica
from app.generation import Call


def round_robin() -> Policy:
    turn = itertools.count()
    return lambda candidates, call: candidates[next(turn) % len(candidates)]


def least_load() -> Policy:
    """The fewest running requests. Among equals it is the next in turn, so that an idle fleet warms up evenly."""
    turn = itertools.count()

    def choose(candidates: Sequence[Replica], call: Call) -> Replica:
        start = next(turn) % len(candidates)
        return min((*candidates[start:], *candidates[:start]), key=_running)

    return choose


def _running(replica: Replica) -> int:
    return replica.running


POLICIES: dict[str, Callable[[], Policy]] = {"round_robin": round_robin, "least_load": least_load}
