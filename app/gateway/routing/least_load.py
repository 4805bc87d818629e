"""The one that has least to do, of all."""

import itertools
from collections.abc import Sequence
from operator import attrgetter

from app.cluster.fleet import Choice, Policy
from app.cluster.replica import Replica
from app.generation import Call
from app.telemetry.record import Reason

_busy = attrgetter("busy")


def least_load() -> Policy:
    """Among equals it is the next in turn, so that an idle fleet warms up evenly."""
    turn = itertools.count()

    def choose(candidates: Sequence[Replica], call: Call) -> Choice:
        start = next(turn) % len(candidates)
        return min((*candidates[start:], *candidates[:start]), key=_busy), Reason.LOAD

    return choose
