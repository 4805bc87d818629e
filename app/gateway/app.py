"""The composition root: what a gateway consists of, built with plain constructors, bottom floor first."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI

from app.clock import Clock, unix_now, utc_today
from app.cluster.adapters import Adapters
from app.cluster.fleet import Fleet
from app.cluster.members import Members, Pace
from app.cluster.probe import Prober
from app.cluster.remote import ANSWER_S, RemoteWorker
from app.cluster.seats import Seats
from app.cluster.swap import Limits
from app.cluster.swaps import Swaps
from app.cluster.turn import Turn
from app.cluster.worker.site import OnProgress
from app.engines.base import Engine
from app.gateway.admin import Admin
from app.gateway.admission import Admission
from app.gateway.auth import Door, KeyedDoor, OpenDoor, SecretDoor
from app.gateway.behind import DOCS, fastapi_app
from app.gateway.connections import Connections, that_files_allow
from app.gateway.control.ancestor import Ancestor
from app.gateway.control.operators import Operators
from app.gateway.dispatch import Dispatch
from app.gateway.edge import Edge, EdgeLimits
from app.gateway.endpoints import Endpoints
from app.gateway.heartbeat import Heartbeat
from app.gateway.intake import Defaults, Intake
from app.gateway.internal import InternalListener, Probes
from app.gateway.interpreter import settle
from app.gateway.journal import JournalPages
from app.gateway.listener import Address, listener
from app.gateway.observers import Observers
from app.gateway.origins import Origins
from app.gateway.pipeline import Pipeline
from app.gateway.protocol import GatewayProtocol
from app.gateway.readings import Readings
from app.gateway.replays import Replays
from app.gateway.routing import LOOKS_AT_LOAD, POLICIES, READS_PROMPTS
from app.gateway.routing.chain import prefix_of
from app.gateway.siblings import Family, Siblings
from app.gateway.storage import Storage
from app.gateway.supply import Supply
from app.gateway.ticket import Ticket
from app.gateway.turns import Turns
from app.reliability.estimates import Estimates
from app.reliability.failed_logins import FailedLogins
from app.reliability.fair_queue import FairQueue, Fifo, Queue
from app.reliability.hedge import HedgeDelay
from app.reliability.retry import Retry, RetryBudget
from app.reliability.stores.redis_cluster import RedisAddresses, RedisTurn
from app.reliability.watch import Watch
from app.settings import BadSetting, Settings
from app.telemetry.base import Telemetry, TenantsRead
from app.telemetry.explaining import Explanations
from app.telemetry.prometheus import Metrics
from app.tenants.file import BadTenants
from app.tenants.follower import Follower
from app.tenants.roster import Roster
from app.version import VERSION


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
        family: Family | None = None,
    ) -> None:
        """`engines` stand in for those that the settings describe; `backends` are told beside the usual ones;
        `on_progress` hears what engines say while they load; `family`: of a process that is one of several. Raises
        `BadSetting` for a bad file of tenants, and `CannotListen` for METRICS_PORT."""
        self.settings = settings
        self.clock = clock
        self.tenants = self._tenants()
        self.watch = Watch(clock)
        self.name = f"{random.getrandbits(16):04x}"
        """Among several gateways, in the ids that each gives."""
        self.observers = Observers(settings, clock, backends)
        self.telemetry, metrics = self.observers.telemetry, self.observers.metrics
        self.storage = Storage(settings, clock, self.telemetry)
        routing = settings.routing
        self.fleet = Fleet(POLICIES[routing.policy](), self.telemetry)
        self.fleet.tells_options = self.observers.journal is not None
        asks_load = routing.policy in LOOKS_AT_LOAD or metrics is not None
        self.prober = Prober(self.fleet, routing.probe_interval_s, asks_load=asks_load)
        self.retries = RetryBudget(routing.retry_share, clock)
        self.admission = Admission(self.fleet, self.watch, self._line, refuses_early=settings.admission.backpressure)
        self.supply = Supply(settings, self.fleet, self.watch, self.telemetry, on_progress)
        self.supply.add(engines)
        self.members = self._members()
        self.swaps = self._swaps()
        self.replays = Replays(self.storage.answers, settings.idempotency, self.watch)
        self.connections = Connections(settings.edge.max_connections or that_files_allow())
        self.heartbeat = Heartbeat(clock, metrics.loop_lag if metrics else lambda seconds: None)
        self.siblings = Siblings(family)
        self.internal = self._internal()
        self.edge = self._edge()
        origins = settings.listen.allowed_origins
        self.app: Edge | Origins = Origins(self.edge, origins) if origins else self.edge
        if metrics is not None:
            self._measure(metrics)
        edge = settings.edge
        turns = Turns(clock)
        self.protocol = GatewayProtocol.configured(
            self.watch, turns, self.connections, edge.max_header_bytes, edge.body_timeout_s
        )

    def _measure(self, metrics: Metrics) -> None:
        admission = self.settings.admission
        metrics.know(lambda: self.fleet.models)
        metrics.measure(
            Readings(
                self.fleet,
                self.admission,
                admission.places if admission.backpressure else math.inf,
                self.storage.quota,
                self.retries,
                self.replays,
                self.storage.books,
                self.storage.shared,
                self.members,
                self.connections,
                self.observers.log,
                self.clock,
            )
        )

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """What runs for as long as the server does. Engines go last: what still runs at the end runs on them."""
        try:
            async with self.supply.started(self.members.join):
                await self.members.look_first()
                await self.prober.look_first()
                async with self._loops():
                    settle()
                    async with self._internally(), self.replays.running(self.settings.listen.drain_s):
                        yield
        finally:
            await self.siblings.aclose()
            await self.members.aclose()
            await self.storage.aclose()
            await self.observers.aclose()

    @asynccontextmanager
    async def _loops(self) -> AsyncIterator[None]:
        loops = [self.heartbeat.run, self.watch.run, self.prober.run, self.members.run, self.swaps.run]
        loops += self.storage.loops
        if self.tenants is not None:
            loops.append(self.tenants.run)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop()) for loop in loops]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()

    def _internally(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self.internal is None else self.internal.serving()

    def _edge(self) -> Edge:
        """The hot endpoints, and FastAPI's behind them."""
        settings, clock, metrics = self.settings, self.clock, self.observers.metrics
        adapters = Adapters(self.members)
        endpoints = Endpoints(
            self.fleet,
            self.admission,
            self.replays,
            metrics if settings.listen.processes == 1 else None,  # else they would be of any one of them
            clock,
            VERSION,
            clock(),
            int(unix_now()),
            adapters.parent_of,
        )
        drain_s = settings.cluster.drain_s
        explanations = Explanations(self.name, settings.routing.policy, clock, unix_now)
        beside = (
            Admin(self.storage.books),
            JournalPages(self.observers.journal, self.admission, explanations, self.siblings),
            Ancestor(self.members, self.swaps, self.siblings),
            Operators(self.members, self.swaps, adapters, self.fleet, clock, drain_s, self.siblings),
        )
        behind = fastapi_app(endpoints, [each.router() for each in beside], self._lifespan)
        self.observers.instrument(behind)
        tracer = self.observers.tracer
        return Edge(
            behind,
            self._door(),
            self._intake(),
            self._pipeline(),
            self.telemetry,
            self.watch,
            self._edge_limits(),
            DOCS.union(endpoints.paths, *(each.paths for each in beside)),
            None if tracer is None else tracer.begin,
            self.name,
        )

    # --- the parts that settings decide -------------------------------------------------------------------------

    def _tenants(self) -> Follower | None:
        path = self.settings.listen.tenants_file
        if path is None:
            return None
        try:
            return Follower(path, utc_today, self._tenants_read)
        except BadTenants as error:
            raise BadSetting(f"TENANTS_FILE: {error}") from None

    def _tenants_read(self, roster: Roster, problem: BadTenants | None) -> None:
        self.telemetry.note(TenantsRead(len(roster.tenants), len(roster.keys), refused=problem is not None))

    def _door(self) -> Door:
        failed_logins = FailedLogins(self.clock)
        door: Door = OpenDoor(beyond_loopback=self.settings.listen.takes_anybody)
        if self.tenants is not None:
            door = KeyedDoor(self.tenants.directory, failed_logins)
        secret = self.settings.cluster.secret
        return door if secret is None else SecretDoor(door, secret.get_secret_value(), failed_logins)

    def _members(self) -> Members:
        cluster, slots = self.settings.cluster, self.settings.admission.slots
        secret = cluster.secret.get_secret_value() if cluster.secret is not None else None
        members = Members(
            Seats(self.fleet, self.clock, self.supply.replica, self.prober.look, slots),
            self.telemetry,
            self.clock,
            Pace(cluster.heartbeat_s, cluster.lease_s),
            lambda address: RemoteWorker(address, secret, answer_s=min(ANSWER_S, cluster.lease_s / 2)),
            None if self.storage.shared is None else RedisAddresses(self.storage.shared),
        )
        for url in cluster.worker_urls:
            members.know(url)
        return members

    def _swaps(self) -> Swaps:
        limits = Limits(self.settings.cluster.drain_s, self.settings.engine.start_timeout_s)
        turn = Turn(None if self.storage.shared is None else RedisTurn(self.storage.shared))
        return Swaps(self.members, self.telemetry, self.clock, limits, turn)

    def _internal(self) -> InternalListener | None:
        """Its port is taken now, before a model is loaded."""
        host, port = self.settings.telemetry.metrics_host, self.settings.telemetry.metrics_port
        if port is None:
            return None
        taken = listener(Address(host, port, "METRICS_HOST", "set METRICS_PORT="))
        return InternalListener(
            taken, Probes(self.fleet, self.admission, self.observers.metrics, self.heartbeat), self.siblings
        )

    def _pipeline(self) -> Pipeline:
        routing = self.settings.routing
        dispatch = Dispatch(
            self.fleet,
            Retry(attempts=routing.max_attempts),
            self.retries,
            HedgeDelay(routing.hedge_share, self.clock),
            self.telemetry,
            self.clock,
            on_delay=self.observers.metrics.event_delay if self.observers.metrics else lambda seconds: None,
        )
        return Pipeline(
            self.replays,
            self.fleet,
            Estimates(),
            self.storage.quota,
            self.admission,
            dispatch,
            self.storage.books.ledger,
            self.observers.metrics.settled if self.observers.metrics else lambda call, used: None,
        )

    def _line(self) -> Queue[Ticket]:
        admission = self.settings.admission
        if not admission.backpressure:
            return Fifo(self.clock)
        return FairQueue(admission.places, admission.token_places, admission.promote_after_s, self.clock)

    def _intake(self) -> Intake:
        sampling, edge = self.settings.sampling, self.settings.edge
        defaults = Defaults(sampling.max_tokens, sampling.temperature)
        along = self.settings.engine.counts_along
        prefix = prefix_of if self.settings.routing.policy in READS_PROMPTS else None
        takes_over = self.settings.routing.takeover
        return Intake(self.fleet, defaults, edge.max_choices, edge.request_timeout_s, along, prefix, takes_over)

    def _edge_limits(self) -> EdgeLimits:
        edge = self.settings.edge
        return EdgeLimits(
            max_body_bytes=edge.max_body_bytes,
            body_timeout_s=edge.body_timeout_s,
            write_timeout_s=edge.write_timeout_s,
        )
