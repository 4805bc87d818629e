"""What must be true of every history. Each says in a sentence where it is not."""

from tests.simulation.history import History
from tests.simulation.invariants import answers, circuits, ends, engines, keys, lines, store, tenants, time
from tests.simulation.invariants.base import INVARIANTS, Violation

__all__ = [
    "INVARIANTS",
    "Violation",
    "answers",
    "check",
    "circuits",
    "ends",
    "engines",
    "keys",
    "lines",
    "store",
    "tenants",
    "time",
]


def check(history: History) -> list[Violation]:
    return [Violation(each.__name__, message) for each in INVARIANTS for message in each(history)]
