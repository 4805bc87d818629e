"""Where replicas come from: servers of others that the settings name, engines that are ours to start, or workers."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

from app.clock import Clock
from app.cluster.control import Order, Worker, WorkerState
from app.cluster.fleet import Fleet
from app.cluster.replica import Replica
from app.cluster.worker.crew import crew
from app.cluster.worker.site import OnProgress
from app.cluster.worker.worker import LocalWorker
from app.engines.base import Engine
from app.engines.http import HttpEngine
from app.engines.http import Timeouts as EngineTimeouts
from app.reliability.circuit import Circuit, CircuitState
from app.reliability.limit import AdaptiveLimit
from app.reliability.watch import Watch
from app.settings import Settings
from app.telemetry.base import CircuitChanged, Telemetry

ADAPTED = 16
"""An adaptive limit may become so many times what it started with."""

LONG_S = 3_600.0
"""Between two looks at a worker that has no news."""

LONGEST_PAUSES = 12
"""How many times its first pause a replica that goes on failing rests at most."""


class Supply:
    def __init__(
        self, settings: Settings, fleet: Fleet, watch: Watch, telemetry: Telemetry, on_progress: OnProgress
    ) -> None:
        self.failure = ""
        """Why no engine can be had any more, if so."""
        self.engine_at: Callable[[str], Engine] = self._http_engine
        """What speaks to an engine, by its URL."""
        self._settings = settings
        self._fleet = fleet
        self._watch = watch
        self._clock: Clock = watch.clock
        self._telemetry = telemetry
        self._on_progress = on_progress
        self._failed: set[str] = set()

    def add(self, engines: Mapping[str, Engine] | None) -> None:
        """These, or those of others in the settings."""
        if engines is None:
            engines = {urlsplit(url).netloc: self._http_engine(url) for url in self._settings.engine.urls}
        for name, engine in engines.items():
            self._fleet.add(self._replica(name, engine))

    def replica(self, name: str, url: str) -> Replica:
        """Of an engine that somebody else looks after."""
        return self._replica(name, self.engine_at(url))

    @asynccontextmanager
    async def started(self, join: Callable[[Worker], Awaitable[object]]) -> AsyncIterator[None]:
        """Ours, if there are no others. Whatever answers in the end, its connections are given back."""
        try:
            if self._fleet.replicas or self._settings.engine.type == "workers":
                yield
            else:
                async with self._crew() as workers, self._watching(workers):
                    for worker in workers:
                        await worker.load(Order(model=self._settings.engine.model), drain_s=0.0)
                        await join(worker)
                    yield
        finally:
            for replica in self._fleet.replicas:
                await replica.engine.aclose()

    def _crew(self) -> AbstractAsyncContextManager[tuple[LocalWorker, ...]]:
        settings = self._settings
        return crew(
            settings.engine,
            settings.storage.state_dir,
            on_progress=self._on_progress,
            heartbeat_s=settings.cluster.heartbeat_s,
            telemetry=settings.telemetry,
        )

    @asynccontextmanager
    async def _watching(self, workers: Sequence[LocalWorker]) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            watches = [tasks.create_task(self._look_at(worker, len(workers))) for worker in workers]
            try:
                yield
            finally:
                for watch in watches:
                    watch.cancel()

    async def _look_at(self, worker: LocalWorker, of: int) -> None:
        """A gateway one of whose engines cannot be brought up at the start, or that has lost the last, ends."""
        was_ready, status = False, await worker.status()
        while True:
            was_ready |= status.state is WorkerState.READY
            (self._failed.add if status.state is WorkerState.FAILED else self._failed.discard)(worker.name)
            hopeless = worker.name in self._failed and (not was_ready or len(self._failed) == of)
            if hopeless and not self.failure:
                self.failure = status.reason
                signal.raise_signal(signal.SIGTERM)  # the one way to end that every server understands
            status = await worker.status(status.version, LONG_S)

    def _replica(self, name: str, engine: Engine) -> Replica:
        admission, routing = self._settings.admission, self._settings.routing
        circuit = Circuit(
            routing.circuit_failures,
            routing.circuit_pause_s,
            LONGEST_PAUSES * routing.circuit_pause_s,
            self._clock,
            lambda state: self._circuit_changed(replica, state),
        )
        reserved = int(admission.slots * admission.interactive_share) if admission.backpressure else 0
        limit = AdaptiveLimit(admission.slots, 1, ADAPTED * admission.slots) if admission.adaptive else None
        address = (engine.address.host, engine.address.port) if isinstance(engine, HttpEngine) else None
        replica = Replica(
            name,
            engine,
            slots=admission.slots,
            reserved=reserved,
            circuit=circuit,
            limit=limit,
            address=address,
        )
        return replica

    def _circuit_changed(self, replica: Replica, state: CircuitState) -> None:
        """Of one that is gone nothing is told: its name may stand for another one."""
        if self._fleet.find(replica.name) is replica:
            self._telemetry.note(CircuitChanged(replica.name, state.value))

    def _http_engine(self, url: str) -> HttpEngine:
        limits = self._settings.timeouts
        whole_s = self._settings.edge.request_timeout_s  # unless streamed, the first byte comes when all is made
        timeouts = EngineTimeouts(limits.connect_s, limits.first_byte_s, limits.idle_s, whole_s)
        key = self._settings.engine.api_key
        return HttpEngine(url, watch=self._watch, timeouts=timeouts, api_key=key.get_secret_value() if key else None)
