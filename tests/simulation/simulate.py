"""A world from its beginning to its end, and its history."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any
from unittest import mock

from starlette.applications import Starlette

from app.clock import Clock
from app.cluster.replica import Replica, State
from app.engines.base import Engine
from app.gateway.app import Gateway
from app.reliability.circuit import CircuitState
from app.reliability.ledger import Book, Selection, total
from app.reliability.stores.sqlite_ledger import FILE, SqliteLedger
from app.settings import Settings
from app.telemetry.base import Event
from app.telemetry.record import Record
from tests.simulation.client import Client
from tests.simulation.engines import Actor
from tests.simulation.history import Counted, History, Left, Seen
from tests.simulation.link import Link
from tests.simulation.loop import Deadlock, VirtualLoop, run
from tests.simulation.memory import IN_MEMORY, Memory, memory
from tests.simulation.world import BEGAN_S, KNOW_EACH_OTHER_S, StoreFault, TenantPlan, Visit, World

WARMS_UP_S = 1.0
"""Until the first client may come: the engines are found."""

SETTLES_S = 5.0
"""Until the gateway must have noticed that all is well again, and given back whatever it held."""

GIVES_BACK_S = 2.0
"""Until Redis has heard that too, whatever it missed."""

MAKES_SURE_S = 6.0
"""Until every gateway has asked Redis again whether it still knows all that was used."""

LONGEST_S = 300.0
"""No world lasts so long, unless something in it has no end."""

MONTH = timedelta(days=30)

VISITOR = TenantPlan("visitor", 1.0, "normal", None, None, None)
"""On whose behalf those come who look afterwards whether all is well."""

FIRST_DAY = datetime(2026, 1, 31, tzinfo=UTC)
AROUND_IT = Selection((FIRST_DAY - MONTH).date(), (FIRST_DAY + MONTH).date())

TURNS = 5
"""In which a task that has just begun, and has nothing to wait for, ends: a probe is no leak."""


def simulate(world: World) -> History:
    with (
        TemporaryDirectory(prefix="gllm-simulation-", dir=IN_MEMORY) as folder,
        memory() if world.shared else nullcontext() as shared,
    ):
        return _simulated(world, Path(folder), shared)


def _simulated(world: World, folder: Path, shared: Memory | None) -> History:
    stage = _Stage(world, folder, shared)
    with (
        mock.patch("app.gateway.app.settle"),
        mock.patch("app.gateway.app.fastapi_app", _nothing_but_its_life),
        mock.patch("app.gateway.app.utc_today", stage.today),
        mock.patch("app.gateway.app.unix_now", stage.unix_now),
        mock.patch("app.gateway.storage.utc_today", stage.today),
        mock.patch("app.gateway.storage.unix_now", stage.unix_now),
        mock.patch("app.gateway.observers.unix_now", stage.unix_now),
        mock.patch("app.reliability.stores.redis.connector", stage.connector),
        mock.patch("secrets.token_hex", lambda size: stage.unguessable.randbytes(size).hex()),
        _ErrorLog(stage.history.logged),
    ):
        try:
            run(stage.loop, stage.until_its_end(), world.seed)
        except Deadlock as deadlock:
            stage.history.stuck = str(deadlock)
    stage.history.ended, stage.history.turns = stage.loop.time(), stage.loop.turns
    return stage.history


class _Stage:
    def __init__(self, world: World, folder: Path, shared: Memory | None) -> None:
        self.world = world
        self.folder = folder
        self.shared = shared
        self.history = History(world, [])
        warms_up_s = KNOW_EACH_OTHER_S if world.shared else WARMS_UP_S
        self.loop = VirtualLoop(BEGAN_S - warms_up_s, self._look)
        self.unguessable = random.Random(f"{world.seed} secrets")
        """Here it follows from the seed, like all chance."""
        self._gateways: list[Gateway] = []
        self._links: dict[str, Link] = {}

    async def until_its_end(self) -> None:
        try:
            async with asyncio.timeout(LONGEST_S):
                await self.play()
        except TimeoutError:
            self.history.stuck = self.history.stuck or f"at {self.loop.time():.3f} s it was not over"

    async def play(self) -> None:
        world, history = self.world, self.history
        afterwards = list(_afterwards(world))
        visits = {visit.id: visit for visit in (*world.visits, *afterwards)}
        actors = {plan.name: Actor(plan, world, visits, self.loop.time) for plan in world.engines}
        history.works = {name: actor.engine.works for name, actor in actors.items()}
        self._gateways += [self._build(number, actors) for number in range(world.gateways)]
        async with AsyncExitStack() as lives:
            self._schedule(actors)
            for gateway in self._gateways:
                await lives.enter_async_context(_serving(gateway))
            await asyncio.sleep(BEGAN_S - self.loop.time())
            usual = _tasks()
            await self._come(world.visits, history.seen)
            if world.drains_at is not None:
                await asyncio.sleep(max(0.0, world.drains_at - self.loop.time()))
                await self._gateways[0].admission.empty()
            await asyncio.sleep(max(0.0, world.faults_end - self.loop.time()) + SETTLES_S)
            for visit in afterwards:
                await self._come([visit], history.afterwards)
            if self.shared is not None:
                await asyncio.sleep(GIVES_BACK_S)
                places = self.shared.places_taken(self.loop.time()) if self._nothing_is_reserved() else []
            await asyncio.sleep(MAKES_SURE_S if world.shared else SETTLES_S)
            for _ in range(TURNS):
                await asyncio.sleep(0)
            history.counted = [await self._counted(number) for number in range(world.gateways)]
            usual += Counter({"Bundle._send": len(asyncio.all_tasks())})  # what gateways ask Redis beside calls
            history.left = Left(self._held(actors), list((_tasks() - usual).elements()))
            if self.shared is not None:
                history.left.places = places + self.shared.places_taken(self.loop.time())
                history.left.claims = self.shared.keys_claimed(self.loop.time())
        history.left.tasks += _tasks().elements()

    def _nothing_is_reserved(self) -> bool:
        """Runs with a key may go on for a while."""
        return not any(gateway.storage.quota.running for gateway in self._gateways)

    def connector(self, url: str) -> Callable[[], Any]:
        return self._links[url].wire

    def _build(self, number: int, actors: Mapping[str, Actor]) -> Gateway:
        given = {"STATE_DIR": self._state_of(number), **self.world.settings}
        if self.shared is not None:
            given["REDIS_URL"] = url = f"redis://for-gateway-{number}"
            self._links[url] = Link(number, self.world, self.shared, self.history.exchanges)
        if self.world.tenants:
            given["TENANTS_FILE"] = file = self.folder / "tenants.toml"
            file.write_text("\n".join(tenant.toml() for tenant in (*self.world.tenants, VISITOR)))
        settings = Settings.load(env={}, env_file=None, **given)
        engines: dict[str, Engine] = {name: actor.engine for name, actor in actors.items()}
        told = _Told(self.history, number, self.loop.time)
        return Gateway(settings, engines, clock=self.loop.time, backends=[told])

    def _state_of(self, number: int) -> Path:
        return self.folder / f"gateway-{number}"

    def _schedule(self, actors: Mapping[str, Actor]) -> None:
        for fault in self.world.faults:
            self.loop.call_at(fault.at, actors[fault.engine].begin, fault)
            self.loop.call_at(fault.until, actors[fault.engine].end, fault)
        for trouble in self.world.store_faults:
            self._schedule_at_store(trouble)
        if self.world.drains_at is not None:
            patience_s = self.world.settings["DRAIN_SECONDS"]
            self.loop.call_at(self.world.drains_at, self._gateways[0].admission.drain, patience_s)

    def _schedule_at_store(self, fault: StoreFault) -> None:
        for number, link in enumerate(self._links.values()):
            if fault.meets(number):
                self.loop.call_at(fault.at, link.begin, fault)
                self.loop.call_at(fault.until, link.end, fault)
        if fault.empties and self.shared is not None:
            self.loop.call_at(fault.at, self.shared.forget_everything)

    async def _counted(self, number: int) -> Counted:
        report = await self._gateways[number].storage.books.report(AROUND_IT)
        own = SqliteLedger(self._state_of(number) / FILE, read_only=True)
        try:
            return Counted(_summed(own.select(AROUND_IT)), _summed(report.book), report.scope == "cluster")
        finally:
            own.close()

    def _held(self, actors: Mapping[str, Actor]) -> dict[str, int]:
        held = {f"calls in {name}": actor.engine.running for name, actor in actors.items()}
        for number, gateway in enumerate(self._gateways):
            held |= {f"{what} of gateway-{number}": count for what, count in _held_by(gateway).items()}
        return {what: count for what, count in held.items() if count}

    def today(self) -> date:
        return self._wall_clock().date()

    def unix_now(self) -> int:
        return int(self._wall_clock().timestamp())

    def _wall_clock(self) -> datetime:
        now = self.loop.time()
        return FIRST_DAY + timedelta(seconds=now + sum(by for at, by in self.world.wall_jumps if at <= now))

    async def _come(self, visits: Sequence[Visit], seen: list[Seen]) -> None:
        """All of them, to their ends; and if these do not come, to the time when they should have."""
        clients = [Client(visit) for visit in visits]
        seen += [client.seen for client in clients]
        running = [self.loop.create_task(client.run(self._gateways[client.visit.gateway].app)) for client in clients]
        over = max([self.loop.time(), *(visit.at for visit in visits)]) + self._longest_s()
        _, late = await asyncio.wait(running, timeout=max(0.0, over - self.loop.time()))
        if late:
            names = sorted(client.visit.id for client in clients if client.seen.returned is None)
            self.history.stuck = f"at {self.loop.time():.3f} s these had no end: {', '.join(names)}"
            for task in late:
                task.cancel()
            await asyncio.wait(late)
        for task in running:
            if not task.cancelled():
                task.result()

    def _longest_s(self) -> float:
        """No request may be with the gateway for longer."""
        limits = self.world.settings
        return float(limits["REQUEST_TIMEOUT"] + limits["BODY_TIMEOUT"] + limits["WRITE_TIMEOUT"] + 1.0)

    def _look(self) -> None:
        """After each turn of the loop."""
        peaks, now = self.history.peaks, self.loop.time()
        for number, gateway in enumerate(self._gateways):
            replicas = gateway.fleet.replicas
            for replica in replicas:
                peaks.runs(replica.name, replica.running)
            for model in self.world.models:
                line = gateway.admission.line(model)
                peaks.waits(model, len(line.queue), line.queue.tokens)
                idle = bool(line.queue) and any(_could_serve(replica, model) for replica in replicas)
                peaks.idles(f"{model} at gateway-{number}", now, idle)


def _could_serve(replica: Replica, model: str) -> bool:
    """To anybody, at once."""
    ready = replica.state is State.READY and model in replica.models and replica.circuit.state is CircuitState.CLOSED
    return ready and replica.running < replica.slots - replica.reserved


class _Told:
    """A telemetry backend that writes the history."""

    def __init__(self, history: History, gateway: int, clock: Clock) -> None:
        self._history = history
        self._gateway = gateway
        self._clock = clock

    def began(self, record: Record) -> None:
        self._history.begun.append(record.id)

    def ended(self, record: Record) -> None:
        self._history.records.append(record)

    def note(self, event: Event) -> None:
        self._history.events.append((self._clock(), self._gateway, event))


class _ErrorLog(logging.Handler):
    """What the gateway, or the loop, logs as an error meanwhile."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._said = said
        self._loggers = [logging.getLogger(name) for name in ("gllm", "asyncio")]

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(self.format(record))

    def __enter__(self) -> None:
        for logger in self._loggers:
            logger.addHandler(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for logger in self._loggers:
            logger.removeHandler(self)


def _nothing_but_its_life(*parts: Any) -> Starlette:
    """What is behind the edge: nobody here asks for it, and it takes longer to build than many a world to live."""
    *_, lifespan = parts
    return Starlette(lifespan=lifespan)


@asynccontextmanager
async def _serving(gateway: Gateway) -> AsyncIterator[None]:
    """As a server does: from the startup of the application to its shutdown."""
    to_app: asyncio.Queue[str] = asyncio.Queue()
    from_app: asyncio.Queue[str] = asyncio.Queue()

    async def receive() -> dict[str, Any]:
        return {"type": await to_app.get()}

    async def send(message: dict[str, Any]) -> None:
        from_app.put_nowait(message["type"])

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    life = asyncio.get_running_loop().create_task(gateway.app(scope, receive, send))
    to_app.put_nowait("lifespan.startup")
    assert await from_app.get() == "lifespan.startup.complete"
    try:
        yield
    finally:
        to_app.put_nowait("lifespan.shutdown")
        await life


def _afterwards(world: World) -> Iterator[Visit]:
    """One for each model at each gateway that is not drained; with a key, where keys are shared."""
    for gateway in range(0 if world.drains_at is None else 1, world.gateways):
        for model in world.models:
            name = f"{world.seed}-afterwards-{model}-{gateway}"
            visit = Visit(id=name, at=BEGAN_S, model=model, stream=False, tokens=2, gateway=gateway)
            if world.tenants:
                visit = replace(visit, tenant=VISITOR.name, key=VISITOR.key)
            yield replace(visit, idempotency_key=name) if world.shared else visit


def _held_by(gateway: Gateway) -> dict[str, int]:
    return {
        "requests inside": gateway.admission.inside,
        "requests in line": gateway.admission.waiting,
        "runs with a key": len(gateway.replays),
        "reservations": gateway.storage.quota.running,
        "entries of the watch": len(gateway.watch),
        **{f"leases of {replica.name}": replica.running for replica in gateway.fleet.replicas},
    }


def _summed(book: Book) -> tuple[int, int, int]:
    amounts = total(book)
    return amounts.requests, amounts.prompt_tokens, amounts.completion_tokens


def _tasks() -> Counter[str]:
    """What runs, by the function that it began with."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    return Counter(getattr(task.get_coro(), "__qualname__", "") for task in others)
