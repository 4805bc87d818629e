"""Where replicas come from: servers of others that the settings name, engines that are ours to start, or workers."""

import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from app.clock import Clock
from app.cluster.fleet import Fleet
from app.cluster.launchers.local import LocalEngine, LocalLauncher, OnProgress, State
from app.cluster.replica import Replica
from app.engines.base import Engine
from app.engines.http import HttpEngine
from app.engines.http import Timeouts as EngineTimeouts
from app.reliability.circuit import Circuit, CircuitState
from app.reliability.limit import AdaptiveLimit
from app.reliability.watch import Watch
from app.settings import Settings
from app.telemetry.base import CircuitChanged, EngineChanged, Telemetry

ADAPTED = 16
"""An adaptive limit may become so many times what it started with."""

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
        self._started: dict[str, LocalEngine] = {}

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
    async def started(self) -> AsyncIterator[None]:
        """Ours, if there are no others. Whatever answers in the end, its connections are given back."""
        try:
            if self._fleet.replicas or self._settings.engine.type == "workers":
                yield
            else:
                async with self._launcher() as launcher:
                    for engine in launcher.engines:
                        self._fleet.add(self._replica(engine.name, self._http_engine(engine.base_url)))
                    yield
        finally:
            for replica in self._fleet.replicas:
                await replica.engine.aclose()

    def _launcher(self) -> LocalLauncher:
        settings = self._settings
        return LocalLauncher(
            settings.engine, settings.storage.state_dir, on_change=self._changed, on_progress=self._on_progress
        )

    def _changed(self, engine: LocalEngine) -> None:
        self._telemetry.note(EngineChanged(engine.name, engine.state.value, engine.reason))
        replica = self._fleet.find(engine.name)
        if replica is not None and engine.state is not State.READY:
            self._fleet.failed(replica, engine.reason or engine.state.value)
        self._started[engine.name] = engine
        failed = [each for each in self._started.values() if each.state is State.FAILED]
        hopeless = engine in failed and (not engine.was_ready or len(failed) == self._settings.engine.replicas)
        if hopeless and not self.failure:
            self.failure = engine.reason
            signal.raise_signal(signal.SIGTERM)  # the one way to end that every server understands

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
        replica = Replica(name, engine, slots=admission.slots, reserved=reserved, circuit=circuit, limit=limit)
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
