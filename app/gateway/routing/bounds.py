"""How much more than its share a replica may have to do and still be preferred for what it remembers.

Consistent hashing with bounded loads: whatever is popular, nobody is sent where there is far more to do than elsewhere.
"""

from collections.abc import Sequence

from app.cluster.replica import Replica

SLACK = 0.25
"""Above the mean of the candidates."""

AT_EASE = 8
"""An eighth of its slots is never too much: where little is going on, one running call may already be far more than
the mean."""


class Bound:
    """What the candidates have to do on average, for each slot, and a little more. One of them is always within it."""

    __slots__ = ("_most",)

    def __init__(self, candidates: Sequence[Replica]) -> None:
        slots = work = 0
        for replica in candidates:
            slots += replica.slots
            work += replica.load + replica.beside
        self._most = (1 + SLACK) * work / slots

    def allows(self, replica: Replica) -> bool:
        running = replica.running + replica.foreign.sequences
        return replica.busy <= self._most or running < replica.slots // AT_EASE
