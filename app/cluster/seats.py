"""A worker's place in the fleet: a replica while its engine answers, and what is expected of it while it does not."""

from collections.abc import Awaitable, Callable

from app.clock import Clock
from app.cluster.control import Order, Status, WorkerState
from app.cluster.fleet import Fleet, Prospect
from app.cluster.member import Member, names_of
from app.cluster.replica import Replica, State

LOADS_REMEMBERED = 100
SWAP = "swap/"
"""No worker's name."""


class Seats:
    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        replica: Callable[[str, str], Replica],
        probe: Callable[[Replica], Awaitable[None]],
        slots: int,
    ) -> None:
        """`replica` makes one of a name and an engine's URL; `probe` asks one at once what it serves; `slots`: how many
        calls at once a worker's engine will answer."""
        self._fleet = fleet
        self._clock = clock
        self._replica = replica
        self._probe = probe
        self._slots = slots
        self._left: list[Replica] = []
        self._took_s: dict[str, float] = {}
        """How long models took to load."""

    async def seat(self, member: Member, status: Status, before: Status | None) -> None:
        """As it says. What comes is known before what was goes, so that no call in between is told of no such model."""
        engine = _engine_of(status)
        changed = engine != member.engine
        self._time_loads(member, status)
        if changed:
            self._fleet.foretell(status.name, self._prospect(member, status, None))
            self._take_out(member)
            if engine is not None:
                member.engine, member.replica = engine, self._replica(status.name, engine[2])
                self._fleet.add(member.replica)
        if (replica := member.replica) is not None:
            (self._fleet.drain if status.state is WorkerState.DRAINING else self._fleet.admit)(replica)
            if replica.state is State.STARTING or before is None or _served(before) != _served(status):
                await self._probe(replica)
        if status is member.status and member.present:  # it may have changed meanwhile
            self._fleet.foretell(status.name, self._prospect(member, status, member.replica))

    def expect(self, order: Order | None, workers: int) -> None:
        coming = None if order is None or not workers else Prospect(names_of(order), True, workers * self._slots)
        self._fleet.foretell(SWAP, coming)

    def leave(self, member: Member, *, known: bool = True) -> None:
        """`known`: what it served goes on to be known, and is refused where nobody else serves it."""
        names = member.status.names if member.status is not None else ()
        self._fleet.foretell(member.name, Prospect(names, coming=False) if known and names else None)
        self._take_out(member)

    async def close_left(self, *, all_of_them: bool = False) -> None:
        """The connections of those that are gone, once their last call has ended."""
        over = [each for each in self._left if all_of_them or not each.running]
        self._left = [each for each in self._left if each not in over]
        for each in over:
            await each.engine.aclose()

    def _take_out(self, member: Member) -> None:
        if member.replica is not None:
            self._fleet.remove(member.replica.name)
            self._left.append(member.replica)
            member.replica = member.engine = None

    def _prospect(self, member: Member, status: Status, replica: Replica | None) -> Prospect | None:
        names = status.names or (names_of(status.order) if status.order else ())
        match status.state:
            case WorkerState.LOADING:
                return self._coming(member, status, names)
            case WorkerState.READY if status.engine_url and (replica is None or replica.state is State.STARTING):
                return self._coming(member, status, names)
            case WorkerState.DRAINING if status.coming:
                return Prospect(status.coming, True, self._slots)
            case WorkerState.FAILED if names:
                return Prospect(names, coming=False)
            case _:
                return None

    def _coming(self, member: Member, status: Status, names: tuple[str, ...]) -> Prospect:
        took_s = self._took_s.get(status.order.model) if status.order else None
        known = member.loads_since is not None and took_s is not None
        ready_at = member.loads_since + took_s if known else None  # type: ignore[operator]  # both are known
        return Prospect(names, True, self._slots, ready_at)

    def _time_loads(self, member: Member, status: Status) -> None:
        if status.state is WorkerState.LOADING:
            if member.loads_since is None:
                member.loads_since = self._clock()
            return
        if member.loads_since is not None and status.state is WorkerState.READY and status.order is not None:
            self._took_s.pop(status.order.model, None)
            self._took_s[status.order.model] = self._clock() - member.loads_since
            if len(self._took_s) > LOADS_REMEMBERED:
                del self._took_s[next(iter(self._took_s))]
        member.loads_since = None


def _engine_of(status: Status) -> tuple[str, int, str] | None:
    """Which life of which engine answers, if one does."""
    if status.state in (WorkerState.READY, WorkerState.DRAINING) and status.engine_url:
        return status.life, status.starts, status.engine_url
    return None


def _served(status: Status) -> tuple[object, ...]:
    return status.names, status.adapters
