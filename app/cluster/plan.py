"""Who changes when: a pure plan for giving several workers another model while the others go on answering."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import InvalidRequest, NoWorkers


@dataclass(frozen=True)
class Candidate:
    name: str
    serving: bool
    """It answers calls, which it cannot do while it changes."""
    done: bool = False
    """It serves already what is wanted."""


Rounds = tuple[tuple[str, ...], ...]


def floor_of(serving: int, wanted: int | None) -> int:
    """How many of those that serve must go on to at any time. Unless it is said: half of them, rounded up; one alone
    cannot both serve and change."""
    if wanted is None:
        return 0 if serving < 2 else -(-serving // 2)
    if serving and wanted >= serving:
        text = f"{serving} replicas are serving: if {wanted} of them must go on, none can change."
        raise InvalidRequest(text, param="floor")
    return wanted


def rounds_of(chosen: Sequence[Candidate], serving: int, floor: int | None = None) -> Rounds:
    """`serving`: how many answer now, chosen or not.

    First those that serve nothing, all at once: they cost no capacity. Then one alone, who shows whether the others
    should follow; then as many at a time as the floor allows.
    """
    idle = tuple(each.name for each in chosen if not each.serving)
    busy = [each.name for each in chosen if each.serving]
    at_once = max(1, serving - floor_of(serving, floor)) if busy else 0
    canary, others = busy[:1], busy[1:]
    batches = [others[start : start + at_once] for start in range(0, len(others), max(1, at_once))]
    return tuple(tuple(each) for each in (idle, canary, *batches) if each)


def chosen_of(present: Sequence[Candidate], count: int | None = None) -> list[Candidate]:
    """Those that shall serve it: all, or so many, of whom it costs least. They come with those that do already."""
    if not present:
        raise NoWorkers
    if count is None:
        return list(present)
    if count > len(present):
        raise NoWorkers(f"{count} workers were asked for, and {len(present)} are there.")
    return sorted(present, key=lambda each: (not each.done, each.serving))[:count]
