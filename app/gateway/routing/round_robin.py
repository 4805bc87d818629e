"""Each in turn, whatever it has to do."""

import itertools
from collections.abc import Sequence

from app.cluster.fleet import Choice, Policy
from app.cluster.replica import Replica
from app.generation import Call
from app.telemetry.record import Reason


def round_robin() -> Policy:
    turn = itertools.count()

    def choose(candidates: Sequence[Replica], call: Call) -> Choice:
        return candidates[next(turn) % len(candidates)], Reason.TURN

    return choose
