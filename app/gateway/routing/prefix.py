"""The replica that has read the longest beginning of this prompt lately, and so need not compute it again."""

from collections.abc import Sequence

from app.cluster.fleet import Choice, Policy
from app.cluster.replica import Replica
from app.gateway.routing.bounds import Bound
from app.generation import Call
from app.telemetry.record import Reason


def prefix(otherwise: Policy) -> Policy:
    """`otherwise` chooses where nobody has read it, among those that have not too much to do."""

    def choose(candidates: Sequence[Replica], call: Call) -> Choice:
        known = {replica: replica.prefixes.known(call.prefix) for replica in candidates} if call.prefix else {}
        if not any(known.values()):
            return otherwise(candidates, call)
        bound = Bound(candidates)
        allowed = [replica for replica in candidates if bound.allows(replica)]
        best = max(allowed, key=lambda replica: (known[replica], -replica.busy))
        if known[best]:
            return best, Reason.PREFIX
        return otherwise(allowed, call)[0], Reason.PREFIX_AWAY

    return choose
