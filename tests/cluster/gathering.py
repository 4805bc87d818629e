"""A gateway's part in the cluster, over scripted workers."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from app.clock import Clock
from app.cluster.control import Worker
from app.cluster.fleet import Fleet
from app.cluster.member import Member
from app.cluster.members import Addresses, Members, Pace
from app.cluster.probe import Prober
from app.cluster.replica import Replica
from app.cluster.seats import Seats
from app.cluster.swap import Limits
from app.cluster.swaps import Swaps
from app.cluster.turn import SharedTurn, Turn
from app.engines.scripted import Scripted
from app.errors import WorkerUnreachable
from app.gateway.routing import POLICIES
from app.generation import Call, Route
from app.reliability.stores.redis import StoreUnavailable
from app.telemetry.base import ReplicaChanged, WorkerChanged
from tests.support.clock import FakeClock
from tests.support.recorder import Recorder
from tests.support.workers import ScriptedWorker

HEARTBEAT_S, LEASE_S, SLOTS = 2.0, 10.0, 4
BRIEFLY_S = 0.02


def call(model: str = "demo") -> Call:
    return Call(id="r", route=Route.CHAT, model=model, body=b"{}", expires_at=0)


def at(name: str) -> str:
    return f"http://{name}:9000"


class Gathering:
    def __init__(
        self,
        *workers: ScriptedWorker,
        clock: Clock | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        shared: Addresses | None = None,
        turn: SharedTurn | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.workers = {at(each.name): each for each in workers}
        self.recorder = Recorder()
        self.fleet = Fleet(POLICIES["least_load"](), self.recorder)
        self.closed: list[str] = []
        probe = Prober(self.fleet, 1.0).look
        now = clock or self.clock
        seats = Seats(self.fleet, now, self._replica, probe, SLOTS)
        pace = Pace(heartbeat_s, LEASE_S)
        self.members = Members(seats, self.recorder, now, pace, self._connect, shared)
        self.seats = seats
        self.swaps = Swaps(self.members, self.recorder, now, Limits(drain_s=1.0, load_s=5.0), Turn(turn))

    def _connect(self, address: str) -> Worker:
        return self.workers.get(address) or _Nobody(address)

    def _replica(self, name: str, url: str) -> Replica:
        worker = next(each for each in self.workers.values() if each.name == url.rpartition("/")[2])
        return Replica(name, _Engine(worker.engine, name, self.closed), slots=SLOTS)

    async def announce(self, name: str) -> Member:
        return await self.members.announce(at(name))

    async def all_announced(self) -> list[Member]:
        return [await self.members.announce(address) for address in self.workers]

    def serving(self, model: str = "demo") -> set[str]:
        """Who is chosen for a call, asked often enough."""
        leases = []
        while (lease := self.fleet.lease(call(model))) is not None:
            leases.append(lease)
        for lease in leases:
            lease.release()
        return {lease.replica.name for lease in leases}

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(each.worker, each.state) for each in self.recorder.events if isinstance(each, WorkerChanged)]

    @property
    def replicas_told(self) -> list[tuple[str, str]]:
        return [(each.replica, each.state) for each in self.recorder.events if isinstance(each, ReplicaChanged)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(self.members.run()), tasks.create_task(self.swaps.run())]
            await asyncio.sleep(0)
            try:
                yield
            finally:
                for loop in loops:
                    loop.cancel()
        for worker in self.workers.values():
            await worker.stop()


class _Engine(Scripted):
    """The engine of a worker, behind connections of its own."""

    def __init__(self, engine: Scripted, name: str, closed: list[str]) -> None:
        self._engine = engine
        self._name = name
        self._closed = closed
        self.open = engine.open  # type: ignore[method-assign]
        self.models = engine.models  # type: ignore[method-assign]

    async def aclose(self) -> None:
        self._closed.append(self._name)


class _Nobody(ScriptedWorker):
    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.away = WorkerUnreachable(f"{address} cannot be reached.")


class Board:
    """What gateways share, in this process."""

    def __init__(self) -> None:
        self.addresses: set[str] = set()
        self.down = False
        self.holder = ""

    async def share(self, alive: Sequence[str]) -> list[str]:
        self._check()
        self.addresses |= set(alive)
        return sorted(self.addresses)

    async def withdraw(self, address: str) -> None:
        self._check()
        self.addresses.discard(address)

    async def take(self, token: str, lease_s: float) -> bool:
        self._check()
        self.holder = self.holder or token
        return self.holder == token

    async def free(self, token: str) -> None:
        self._check()
        self.holder = "" if self.holder == token else self.holder

    async def is_free(self) -> bool:
        self._check()
        return not self.holder

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable
