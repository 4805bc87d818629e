"""The replica where the call's session lives: whoever ranks highest for it (rendezvous hashing).

The rank is made of the two names alone. So nothing is stored, several gateways agree, a session comes back when its
replica does, and a replica that comes or goes moves the sessions it gets or had, and no others.
"""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

from app.cluster.fleet import Choice, Policy
from app.cluster.replica import Replica
from app.gateway.routing.bounds import Bound
from app.generation import Call
from app.telemetry.record import Reason

_64_BITS = 2**64 - 1


def session(otherwise: Policy) -> Policy:
    """`otherwise` chooses for calls without one."""

    def choose(candidates: Sequence[Replica], call: Call) -> Choice:
        if not call.session:
            return otherwise(candidates, call)
        point = _point(f"{call.tenant.name}\0{call.session}")

        def rank(replica: Replica) -> int:
            return _mixed(point ^ _point_of(replica.name))

        home = max(candidates, key=rank)
        bound = Bound(candidates)
        if bound.allows(home):
            return home, Reason.SESSION
        return max(filter(bound.allows, candidates), key=rank), Reason.SESSION_AWAY

    return choose


def _point(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


_point_of = lru_cache(maxsize=4_096)(_point)


def _mixed(bits: int) -> int:
    """Each bit out depends on every bit in (the end of splitmix64). A digest for each pair would cost more."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & _64_BITS
    return bits ^ (bits >> 31)
