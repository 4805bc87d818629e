"""How the load goes over the time of a run, as a multiple of the users that were asked for."""

from collections.abc import Callable


def steady(part: float) -> float:
    return 1.0


def spike(part: float) -> float:
    """Ten times as many for a fifth of the run, and then as before: does everything come back?"""
    return 10.0 if 0.4 <= part < 0.6 else 1.0


def overload(part: float) -> float:
    """Up by steps, and beyond what it can do."""
    return STEPS[min(int(part * len(STEPS)), len(STEPS) - 1)]


STEPS = (0.5, 1.0, 1.5, 2.0, 3.0)

LEVELS: dict[str, Callable[[float], float]] = {"steady": steady, "spike": spike, "overload": overload}


def users(shape: str, part: float, most: int) -> int:
    """At `part` (0 to 1) of the run; never none."""
    return max(1, round(LEVELS[shape](part) * most))
