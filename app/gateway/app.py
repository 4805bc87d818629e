"""The composition root: what a gateway consists of, built with plain constructors, bottom floor first."""

import asyncio
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from urllib.parse import urlsplit

from fastapi import FastAPI

from app.clock import Clock
from app.cluster.fleet import Fleet
from app.cluster.launchers.local import LocalEngine, LocalLauncher, OnProgress
from app.cluster.launchers.local import State as EngineState
from app.cluster.probe import Prober
from app.cluster.replica import Replica
from app.engines.base import Engine
from app.engines.http import HttpEngine
from app.engines.http import Timeouts as EngineTimeouts
from app.gateway.admin import Admin
from app.gateway.admission import Admission, Ticket
from app.gateway.auth import Door, KeyedDoor, OpenDoor
from app.gateway.behind import fastapi_app
from app.gateway.dispatch import Dispatch
from app.gateway.edge import Edge, EdgeLimits
from app.gateway.endpoints import PROBED, Endpoints
from app.gateway.intake import Defaults, Intake
from app.gateway.pipeline import Pipeline
from app.gateway.protocol import GatewayProtocol
from app.gateway.routing import POLICIES
from app.reliability.circuit import Circuit
from app.reliability.estimates import Estimates
from app.reliability.failed_logins import FailedLogins
from app.reliability.fair_queue import FairQueue, Fifo, Queue
from app.reliability.hedge import HedgeDelay
from app.reliability.ledger import Ledger
from app.reliability.limit import AdaptiveLimit
from app.reliability.quota import LocalQuota
from app.reliability.retry import Retry, RetryBudget
from app.reliability.stores.books import Books
from app.reliability.stores.redis import SharedStore, UnusableStore
from app.reliability.stores.redis_quota import RedisQuota
from app.reliability.watch import Watch
from app.settings import BadSetting, Settings
from app.telemetry.base import CircuitChanged, EngineChanged, Everyone, StoreChanged, Telemetry, TenantsRead
from app.telemetry.logs import LogWriter, RequestLog
from app.telemetry.prometheus import Metrics
from app.tenants.file import BadTenants
from app.tenants.follower import Follower
from app.tenants.roster import Roster
from app.version import VERSION

GARBAGE_THRESHOLD = 20_000
"""New objects between two looks for garbage; Python's own 700 is a dozen requests."""

ADAPTED = 16
"""An adaptive limit may become so many times what it started with."""

LONGEST_PAUSES = 12
"""How many times its first pause a replica that goes on failing rests at most."""


class Gateway:
    """One gateway and its parts. `app` is what an ASGI server runs; `protocol` is how ours speaks HTTP."""

    def __init__(
        self,
        settings: Settings,
        engines: Mapping[str, Engine] | None = None,
        *,
        clock: Clock = time.monotonic,
        backends: Sequence[Telemetry] = (),
        on_progress: OnProgress = lambda name, line: None,
    ) -> None:
        """`engines` stand in for those that the settings describe; `backends` are told beside the usual ones;
        `on_progress` hears what engines say while they load. Raises `BadSetting` for a bad file of tenants."""
        self.settings = settings
        self.clock = clock
        self.tenants = self._tenants()
        self.watch = Watch(clock)
        self.metrics = Metrics() if settings.telemetry.metrics else None
        self.log = LogWriter()
        self.telemetry = Everyone(*self._telemetry(), *backends)
        self.failure = ""
        """Why the gateway ended by itself, if it did."""
        self._on_progress = on_progress
        self._engines: dict[str, LocalEngine] = {}
        self.store = self._shared_store()
        storage = settings.storage
        self.books = Books(Ledger(_utc_today), storage.state_dir, storage.ledger_flush_s, self.store)
        self.quota = LocalQuota(clock) if self.store is None else RedisQuota(self.store, clock)
        self.fleet = Fleet(POLICIES[settings.routing.policy](), self.telemetry)
        self.prober = Prober(self.fleet, settings.routing.probe_interval_s)
        self.admission = Admission(self.fleet, self.watch, self._line)
        for name, engine in (self._external_engines() if engines is None else engines).items():
            self.fleet.add(self._replica(name, engine))
        retry = Retry(attempts=settings.routing.max_attempts)
        budget = RetryBudget(settings.routing.retry_share, clock)
        hedge = HedgeDelay(settings.routing.hedge_share, clock)
        dispatch = Dispatch(self.fleet, retry, budget, hedge, self.telemetry, clock)
        endpoints = Endpoints(self.fleet, self.admission, self.metrics, clock, VERSION, clock(), _unix_now())
        admin = Admin(self.books)
        behind = fastapi_app(endpoints, admin, self._lifespan)
        pipeline = Pipeline(self.fleet, Estimates(), self.quota, self.admission, dispatch, self.books.ledger)
        limits, paths = self._edge_limits(), endpoints.paths | admin.paths
        self.app = Edge(behind, self._door(), self._intake(), pipeline, self.telemetry, self.watch, limits, paths)
        edge = settings.edge
        self.protocol = GatewayProtocol.configured(self.watch, edge.max_header_bytes, edge.body_timeout_s)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """What runs for as long as the server does. Engines go last: what still runs at the end runs on them."""
        try:
            async with self._started_engines(), asyncio.TaskGroup() as loops:
                running = [loops.create_task(self.watch.run()), loops.create_task(self.prober.run())]
                running.append(loops.create_task(self.books.run()))
                if self.tenants is not None:
                    running.append(loops.create_task(self.tenants.run()))
                if self.store is not None:
                    running.append(loops.create_task(self.store.keep_watch()))
                if isinstance(self.quota, RedisQuota):
                    running.append(loops.create_task(self.quota.run()))
                _leave_what_stays_to_the_end()
                try:
                    yield
                finally:
                    for loop in running:
                        loop.cancel()
        finally:
            for replica in self.fleet.replicas:
                await replica.engine.aclose()
            await self.books.aclose()
            if self.store is not None:
                await self.store.aclose()
            self.log.close()

    @asynccontextmanager
    async def _started_engines(self) -> AsyncIterator[None]:
        """Those that are ours to start; those of others are in the fleet already."""
        if self.fleet.replicas:
            yield
            return
        settings = self.settings
        launcher = LocalLauncher(
            settings.engine, settings.storage.state_dir, on_change=self._engine_changed, on_progress=self._on_progress
        )
        async with launcher:
            for engine in launcher.engines:
                self.fleet.add(self._replica(engine.name, self._http_engine(engine.base_url)))
            yield

    def _engine_changed(self, engine: LocalEngine) -> None:
        self.telemetry.note(EngineChanged(engine.name, engine.state.value, engine.reason))
        replica = self.fleet.find(engine.name)
        if replica is not None and engine.state is not EngineState.READY:
            self.fleet.failed(replica, engine.reason or engine.state.value)
        self._engines[engine.name] = engine
        failed = [each for each in self._engines.values() if each.state is EngineState.FAILED]
        hopeless = engine in failed and (not engine.was_ready or len(failed) == self.settings.engine.replicas)
        if hopeless and not self.failure:
            self.failure = engine.reason
            signal.raise_signal(signal.SIGTERM)  # the one way to end that every server understands

    def _tenants(self) -> Follower | None:
        path = self.settings.listen.tenants_file
        if path is None:
            return None
        try:
            return Follower(path, _utc_today, self._tenants_read)
        except BadTenants as error:
            raise BadSetting(f"TENANTS_FILE: {error}") from None

    def _tenants_read(self, roster: Roster, problem: BadTenants | None) -> None:
        self.telemetry.note(TenantsRead(len(roster.tenants), len(roster.keys), refused=problem is not None))

    def _door(self) -> Door:
        if self.tenants is None:
            return OpenDoor(beyond_loopback=self.settings.listen.allow_anonymous)
        return KeyedDoor(self.tenants.directory, FailedLogins(self.clock))

    def _telemetry(self) -> list[Telemetry]:
        logs = self.settings.logs
        as_json = logs.format == "json" or (logs.format == "auto" and not sys.stderr.isatty())
        backends: list[Telemetry] = [self.metrics] if self.metrics is not None else []
        if logs.level in ("debug", "info"):
            unlogged = () if logs.level == "debug" else PROBED
            backends.append(RequestLog(self.log, as_json=as_json, unlogged=unlogged))
        return backends

    def _shared_store(self) -> SharedStore | None:
        storage = self.settings.storage
        if storage.redis_url is None:
            return None
        url = storage.redis_url.get_secret_value()
        try:
            return SharedStore(url, storage.redis_timeout_s, self.clock, self._store_changed)
        except UnusableStore as error:
            raise BadSetting(str(error)) from None

    def _store_changed(self, available: bool, reason: str) -> None:
        self.telemetry.note(StoreChanged(available, reason))

    def _external_engines(self) -> dict[str, Engine]:
        return {_host(url): self._http_engine(url) for url in self.settings.engine.urls}

    def _replica(self, name: str, engine: Engine) -> Replica:
        admission, routing = self.settings.admission, self.settings.routing
        circuit = Circuit(
            routing.circuit_failures,
            routing.circuit_pause_s,
            LONGEST_PAUSES * routing.circuit_pause_s,
            self.clock,
            lambda state: self.telemetry.note(CircuitChanged(name, state.value)),
        )
        reserved = int(admission.slots * admission.interactive_share)
        limit = AdaptiveLimit(admission.slots, 1, ADAPTED * admission.slots) if admission.adaptive else None
        return Replica(name, engine, slots=admission.slots, reserved=reserved, circuit=circuit, limit=limit)

    def _line(self) -> Queue[Ticket]:
        admission = self.settings.admission
        if not admission.backpressure:
            return Fifo(self.clock)
        return FairQueue(admission.places, admission.token_places, admission.promote_after_s, self.clock)

    def _http_engine(self, url: str) -> HttpEngine:
        limits = self.settings.timeouts
        whole_s = self.settings.edge.request_timeout_s  # unless streamed, the first byte comes when all is made
        timeouts = EngineTimeouts(limits.connect_s, limits.first_byte_s, limits.idle_s, whole_s)
        key = self.settings.engine.api_key
        return HttpEngine(url, watch=self.watch, timeouts=timeouts, api_key=key.get_secret_value() if key else None)

    def _intake(self) -> Intake:
        sampling, edge = self.settings.sampling, self.settings.edge
        defaults = Defaults(sampling.max_tokens, sampling.temperature)
        along = self.settings.engine.counts_along
        return Intake(self.fleet, defaults, edge.max_choices, edge.request_timeout_s, along)

    def _edge_limits(self) -> EdgeLimits:
        edge = self.settings.edge
        return EdgeLimits(
            max_body_bytes=edge.max_body_bytes,
            body_timeout_s=edge.body_timeout_s,
            write_timeout_s=edge.write_timeout_s,
        )


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _leave_what_stays_to_the_end() -> None:
    """What is built by now lives as long as the process. Looking through it for garbage, again and again, took a tenth
    of each request's CPU (`python -m bench.http_stack`); what requests leave behind is hardly ever cyclic.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)


def _utc_today() -> date:
    return datetime.now(UTC).date()


def _unix_now() -> int:
    return int(datetime.now(UTC).timestamp())
