"""Those that wait for a slot, and who of them is next. Arithmetic only; who waits, and how, is `admission`.

First the priority class, then the tenant that was served least for its weight (`lane`), then the earliest deadline.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import chain, count
from typing import Generic, NamedTuple, Protocol

from app.clock import Clock
from app.reliability.lane import Lane, Place, W, Waiting
from app.tenant import Priority, Tenant

__all__ = ["FairQueue", "Fifo", "Queue", "Turn", "Waiting"]

MOST_YIELDING = 8
"""So many at most give up their places for one newcomer, however large its prompt."""


def always(_: Waiting) -> bool:
    return True


class Turn(NamedTuple):
    """In which company one waits whose turn has come."""

    tenants: int = 0
    """That somebody waits for in its class, its own included; 0 where tenants make no difference."""
    promoted: bool = False
    """A batch request that counts as a normal one by now."""


class Queue(Protocol[W]):
    """Each waiter that is pushed leaves once: popped or removed. Each that is popped or charged is settled once."""

    tokens: int
    """Of the prompts that wait."""

    def __len__(self) -> int: ...

    def oldest_since(self) -> float | None:
        """When the one came that waits longest."""
        ...

    def has_room_for(self, waiter: W) -> bool:
        """Bounded in requests and in prompt tokens; an empty queue takes any one prompt."""
        ...

    def yielding_to(self, waiter: W) -> list[W]:
        """Where there is no room: those who have less right to their places than this newcomer, as many as it needs.
        To be removed. None where that would not be enough."""
        ...

    def push(self, waiter: W) -> None:
        """The caller has asked `has_room_for`."""
        ...

    def remove(self, waiter: W) -> bool:
        """It hung up or expired. `False` if it does not wait any more."""
        ...

    def pop(self, fits: Callable[[W], bool] = always) -> W | None:
        """The next one, charged with its cost. `fits` is asked once a priority class, and speaks for all of it."""
        ...

    def charge(self, waiter: W) -> None:
        """It was admitted without waiting."""
        ...

    def settle(self, tenant: Tenant, expected: float, used: float) -> None:
        """What one really cost that was popped or charged; `expected` is the cost that it had then."""
        ...

    def ahead_of(self, waiter: W) -> int:
        """About how many of those that wait would be served before this newcomer."""
        ...

    def place_of(self, waiter: W) -> int:
        """About where it stands that waits: 1 is next, 0 is nowhere."""
        ...

    def turn_of(self, waiter: W) -> Turn:
        """Of one that waits."""
        ...


class FairQueue(Generic[W]):
    def __init__(self, places: int, token_places: int, promote_after_s: float, clock: Clock) -> None:
        self.tokens = 0
        self._most = places
        self._most_tokens = token_places
        self._promote_after_s = promote_after_s
        self._clock = clock
        self._arrivals = count()
        self._lanes: list[Lane[W]] = [Lane() for _ in Priority]
        self._places: OrderedDict[int, Place[W]] = OrderedDict()
        """By the waiter's identity, oldest first."""
        self._unpromoted: OrderedDict[int, Place[W]] = OrderedDict()
        self._running: dict[tuple[str, float], list[Lane[W]]] = {}
        """Where those were charged that are to be settled. Which one of equal ones is meant makes no difference."""

    def __len__(self) -> int:
        return len(self._places)

    def oldest_since(self) -> float | None:
        return next((place.since for place in self._places.values()), None)

    def has_room_for(self, waiter: W) -> bool:
        if len(self._places) >= self._most:
            return False
        return not self._places or self.tokens + waiter.prompt_tokens <= self._most_tokens

    def yielding_to(self, waiter: W) -> list[W]:
        """The last ones of lower classes; in the same class, of tenants that hold more places for their weight."""
        self._promote()
        lower = (lane.yielding() for lane in reversed(self._lanes[waiter.priority + 1 :]))
        yielding: list[W] = []
        tokens = self.tokens
        for place in chain(*lower, self._lanes[waiter.priority].yielding_to(waiter)):
            yielding.append(place.waiter)
            tokens -= place.waiter.prompt_tokens
            left = len(self._places) - len(yielding)
            if left < self._most and (not left or tokens + waiter.prompt_tokens <= self._most_tokens):
                return yielding
            if len(yielding) == MOST_YIELDING:
                break
        return []

    def push(self, waiter: W) -> None:
        lane = self._lanes[waiter.priority]
        place = Place(waiter, self._clock(), (-waiter.expires_at, -next(self._arrivals)), lane)
        self._places[id(waiter)] = place
        if waiter.priority is Priority.BATCH:
            self._unpromoted[id(waiter)] = place
        self.tokens += waiter.prompt_tokens
        lane.push(place)

    def remove(self, waiter: W) -> bool:
        place = self._places.get(id(waiter))
        if place is None:
            return False
        self._leave(place)
        place.lane.remove(place)
        return True

    def pop(self, fits: Callable[[W], bool] = always) -> W | None:
        self._promote()
        for lane in self._lanes:
            place = lane.head()
            if place is not None and fits(place.waiter):
                self._leave(place)
                lane.pop(place)
                self._runs(place.waiter, lane)
                return place.waiter
        return None

    def charge(self, waiter: W) -> None:
        lane = self._lanes[waiter.priority]
        lane.charge(waiter)
        self._runs(waiter, lane)

    def settle(self, tenant: Tenant, expected: float, used: float) -> None:
        lanes = self._running[tenant.name, expected]
        lanes.pop().settle(tenant, expected, used)
        if not lanes:
            del self._running[tenant.name, expected]

    def ahead_of(self, waiter: W) -> int:
        self._promote()
        return sum(len(lane) for lane in self._lanes[: waiter.priority]) + self._lanes[waiter.priority].ahead_of(waiter)

    def place_of(self, waiter: W) -> int:
        place = self._places.get(id(waiter))
        if place is None:
            return 0
        higher = self._lanes[: self._lanes.index(place.lane)]
        return sum(map(len, higher)) + place.lane.ahead_of_place(place) + 1

    def turn_of(self, waiter: W) -> Turn:
        lane = self._places[id(waiter)].lane
        return Turn(lane.tenants, lane is not self._lanes[waiter.priority])

    def _leave(self, place: Place[W]) -> None:
        waiter = place.waiter
        del self._places[id(waiter)]
        self._unpromoted.pop(id(waiter), None)
        self.tokens -= waiter.prompt_tokens

    def _runs(self, waiter: W, lane: Lane[W]) -> None:
        self._running.setdefault((waiter.tenant.name, waiter.cost), []).append(lane)

    def _promote(self) -> None:
        """A batch request that has waited long enough goes on as a normal one."""
        while self._unpromoted:
            place = next(iter(self._unpromoted.values()))
            if self._clock() - place.since < self._promote_after_s:
                return
            self._unpromoted.popitem(last=False)
            place.lane.remove(place)
            place.lane = self._lanes[Priority.NORMAL]
            place.lane.push(place)


class Fifo(Generic[W]):
    """Plain first come, first served: no bounds, no classes, no accounts. Nobody overtakes one that does not fit."""

    def __init__(self, clock: Clock) -> None:
        self.tokens = 0
        self._clock = clock
        self._places: OrderedDict[int, tuple[W, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def oldest_since(self) -> float | None:
        return next((since for _, since in self._places.values()), None)

    def has_room_for(self, waiter: W) -> bool:
        return True

    def yielding_to(self, waiter: W) -> list[W]:
        return []

    def push(self, waiter: W) -> None:
        self._places[id(waiter)] = waiter, self._clock()
        self.tokens += waiter.prompt_tokens

    def remove(self, waiter: W) -> bool:
        if self._places.pop(id(waiter), None) is None:
            return False
        self.tokens -= waiter.prompt_tokens
        return True

    def pop(self, fits: Callable[[W], bool] = always) -> W | None:
        first = next(iter(self._places.values()), None)
        if first is None or not fits(first[0]):
            return None
        self.remove(first[0])
        return first[0]

    def charge(self, waiter: W) -> None:
        """Nobody is owed anything."""

    def settle(self, tenant: Tenant, expected: float, used: float) -> None:
        """Nobody is owed anything."""

    def ahead_of(self, waiter: W) -> int:
        return len(self._places)

    def place_of(self, waiter: W) -> int:
        return next((number for number, each in enumerate(self._places, 1) if each == id(waiter)), 0)

    def turn_of(self, waiter: W) -> Turn:
        return Turn()
