"""Which replica answers. A policy is a function of the candidates and the call, one a file; here they get their names.

It looks, and the fleet counts: what a policy must know of the past stands on the replicas.
"""

from collections.abc import Callable

from app.cluster.fleet import Policy
from app.gateway.routing.least_load import least_load
from app.gateway.routing.power_of_two import power_of_two
from app.gateway.routing.prefix import prefix
from app.gateway.routing.round_robin import round_robin
from app.gateway.routing.session import session

POLICIES: dict[str, Callable[[], Policy]] = {
    "session": lambda: session(power_of_two()),
    "prefix": lambda: session(prefix(power_of_two())),
    "power_of_two": power_of_two,
    "least_load": least_load,
    "round_robin": round_robin,
}

READS_PROMPTS = frozenset({"prefix"})
"""Those that need a call's chain."""

LOOKS_AT_LOAD = frozenset(POLICIES) - {"round_robin"}

__all__ = [
    "LOOKS_AT_LOAD",
    "POLICIES",
    "READS_PROMPTS",
    "least_load",
    "power_of_two",
    "prefix",
    "round_robin",
    "session",
]
