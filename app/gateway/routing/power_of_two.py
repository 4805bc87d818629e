"""Of two at random, the one that has less to do.

Nearly as even as the least loaded of all where the counts are exact. Where they are not, because several gateways share
the engines and see each other late, the least loaded of all is the same one for all of them, and they flock to it.
"""

import random
from collections.abc import Callable, Sequence

from app.cluster.fleet import Choice, Policy
from app.cluster.replica import Replica
from app.generation import Call
from app.telemetry.record import Reason


def power_of_two(dice: Callable[[], float] = random.random) -> Policy:
    """`dice` gives numbers from 0 to 1, 1 excluded."""

    def choose(candidates: Sequence[Replica], call: Call) -> Choice:
        count = len(candidates)
        first = int(dice() * count)
        one = other = candidates[first]
        if count > 1:
            second = int(dice() * (count - 1))
            other = candidates[second + (second >= first)]
        return (one if one.busy <= other.busy else other), Reason.LOAD

    return choose
