"""The composition root: what a gateway consists of, built with plain constructors, bottom floor first."""

import asyncio
import gc
import math
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app.clock import Clock
from app.cluster.adapters import Adapters
from app.cluster.fleet import Fleet
from app.cluster.members import Members, Pace
from app.cluster.probe import Prober
from app.cluster.remote import ANSWER_S, RemoteWorker
from app.cluster.seats import Seats
from app.cluster.swap import Limits, Swaps
from app.cluster.turn import Turn
from app.cluster.worker.site import OnProgress
from app.engines.base import Engine
from app.gateway.admin import Admin
from app.gateway.admission import Admission
from app.gateway.auth import Door, KeyedDoor, OpenDoor, SecretDoor
from app.gateway.behind import fastapi_app
from app.gateway.control.ancestor import ADD_WORKER, Ancestor
from app.gateway.control.operators import WORKERS, Operators
from app.gateway.dispatch import Dispatch
from app.gateway.edge import RECORD, Edge, EdgeLimits
from app.gateway.endpoints import PROBED, Endpoints
from app.gateway.heartbeat import Heartbeat
from app.gateway.intake import Defaults, Intake
from app.gateway.internal import InternalListener, Probes
from app.gateway.journal import JournalPages
from app.gateway.listener import Address, listener
from app.gateway.pipeline import Pipeline
from app.gateway.protocol import GatewayProtocol
from app.gateway.readings import Readings
from app.gateway.replays import Replays
from app.gateway.routing import LOOKS_AT_LOAD, POLICIES, READS_PROMPTS
from app.gateway.routing.chain import prefix_of
from app.gateway.siblings import Family, Siblings
from app.gateway.supply import Supply
from app.gateway.ticket import Ticket
from app.gateway.turns import Turns
from app.reliability.estimates import Estimates
from app.reliability.failed_logins import FailedLogins
from app.reliability.fair_queue import FairQueue, Fifo, Queue
from app.reliability.hedge import HedgeDelay
from app.reliability.ledger import Ledger
from app.reliability.quota import LocalQuota
from app.reliability.retry import Retry, RetryBudget
from app.reliability.stores.answer_file import AnswerFile
from app.reliability.stores.answer_keys import AnswerKeys
from app.reliability.stores.answers import AnswerStore
from app.reliability.stores.books import Books
from app.reliability.stores.embedded import EmbeddedAnswers
from app.reliability.stores.redis import SharedStore, UnusableStore
from app.reliability.stores.redis_cluster import RedisAddresses, RedisTurn
from app.reliability.stores.redis_quota import RedisQuota
from app.reliability.stores.shared import SharedAnswers
from app.reliability.watch import Watch
from app.settings import BadSetting, Settings
from app.telemetry.base import CollectorChanged, Everyone, StoreChanged, Telemetry, TenantsRead
from app.telemetry.explaining import Explanations
from app.telemetry.journal import Journal
from app.telemetry.logs import LogWriter, RequestLog
from app.telemetry.prometheus import Metrics
from app.telemetry.words import Words, coloured
from app.tenants.file import BadTenants
from app.tenants.follower import Follower
from app.tenants.roster import Roster
from app.version import VERSION

if TYPE_CHECKING:
    from app.telemetry.tracing.tracer import Tracer

SPANS_SENT_S = 3.0
"""How long a stop waits for the collector to take the last spans."""

NEW_OBJECTS = 5_000
"""So many more than there were, and those are looked through for garbage: one to two milliseconds, in which no stream
goes on. Python's own 700 is a dozen requests; with 5,000, a hundred at once come and go without a look."""
YOUNG_LOOKS = 1_000
"""So many looks at new ones until one at all that have survived: tens of milliseconds with a thousand streams open. No
request leaves garbage; what of it there is (of httpx, by our probes) is new."""
LET_GO_S = 0.0005
"""A thread that makes a page of metrics, or packs spans, lets the loop's go on after so long. With Python's own 5 ms
all streams stand still in the meantime."""


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
        self.journal = Journal(settings.telemetry.journal) if settings.telemetry.journal else None
        self.metrics = self._metrics()
        self.log = LogWriter()
        self.tracer = self._tracer()
        self.telemetry = Everyone(*self._telemetry(), *backends)
        self.store = self._shared_store()
        self.books = self._books()
        self.quota = LocalQuota(clock) if self.store is None else RedisQuota(self.store, clock)
        routing = settings.routing
        self.fleet = Fleet(POLICIES[routing.policy](), self.telemetry)
        self.fleet.tells_options = self.journal is not None
        asks_load = routing.policy in LOOKS_AT_LOAD or self.metrics is not None
        self.prober = Prober(self.fleet, routing.probe_interval_s, asks_load=asks_load)
        self.retries = RetryBudget(routing.retry_share, clock)
        self.admission = Admission(self.fleet, self.watch, self._line, refuses_early=settings.admission.backpressure)
        self.supply = Supply(settings, self.fleet, self.watch, self.telemetry, on_progress)
        self.supply.add(engines)
        self.members = self._members()
        self.swaps = self._swaps()
        self.answers = self._answers()
        self.replays = Replays(self.answers, settings.idempotency, self.watch)
        self.heartbeat = Heartbeat(clock, self.metrics.loop_lag if self.metrics else lambda seconds: None)
        self.siblings = Siblings(family)
        self.internal = self._internal()
        adapters = Adapters(self.members)
        endpoints = Endpoints(
            self.fleet,
            self.admission,
            self.replays,
            self.metrics if settings.listen.processes == 1 else None,  # else they would be of any one of them
            clock,
            VERSION,
            clock(),
            int(_unix_now()),
            adapters.parent_of,
        )
        drain_s = settings.cluster.drain_s
        explanations = Explanations(self.name, routing.policy, clock, _unix_now)
        beside = (
            Admin(self.books),
            JournalPages(self.journal, self.admission, explanations, self.siblings),
            Ancestor(self.members, self.swaps, self.siblings),
            Operators(self.members, self.swaps, adapters, self.fleet, clock, drain_s, self.siblings),
        )
        behind = fastapi_app(endpoints, [each.router() for each in beside], self._lifespan)
        if self.tracer is not None:
            self._instrument(behind, self.tracer)
        self.app = Edge(
            behind,
            self._door(),
            self._intake(),
            self._pipeline(),
            self.telemetry,
            self.watch,
            self._edge_limits(),
            endpoints.paths.union(*(each.paths for each in beside)),
            None if self.tracer is None else self.tracer.begin,
            self.name,
        )
        if self.metrics is not None:
            self._measure(self.metrics)
        edge = settings.edge
        turns = Turns(clock)
        self.protocol = GatewayProtocol.configured(self.watch, turns, edge.max_header_bytes, edge.body_timeout_s)

    def _measure(self, metrics: Metrics) -> None:
        admission = self.settings.admission
        metrics.know(lambda: self.fleet.models)
        metrics.measure(
            Readings(
                self.fleet,
                self.admission,
                admission.places if admission.backpressure else math.inf,
                self.quota,
                self.retries,
                self.replays,
                self.books,
                self.store,
                self.members,
                self.log,
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
                    _leave_what_stays_to_the_end()
                    sys.setswitchinterval(LET_GO_S)
                    async with self._internally(), self.replays.running(self.settings.listen.drain_s):
                        yield
        finally:
            await self.siblings.aclose()
            await self.members.aclose()
            await self.answers.aclose()
            await self.books.aclose()
            if self.store is not None:
                await self.store.aclose()
            if self.tracer is not None:
                await asyncio.to_thread(self.tracer.close, SPANS_SENT_S)
            self.log.close()

    @asynccontextmanager
    async def _loops(self) -> AsyncIterator[None]:
        loops = [self.heartbeat.run, self.watch.run, self.prober.run, self.books.run, self.answers.run]
        loops += [self.members.run, self.swaps.run]
        if self.tenants is not None:
            loops.append(self.tenants.run)
        if self.store is not None:
            loops.append(self.store.keep_watch)
        if isinstance(self.quota, RedisQuota):
            loops.append(self.quota.run)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop()) for loop in loops]
            try:
                yield
            finally:
                for task in running:
                    task.cancel()

    def _internally(self) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self.internal is None else self.internal.serving()

    # --- the parts that settings decide -------------------------------------------------------------------------

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
            None if self.store is None else RedisAddresses(self.store),
        )
        for url in cluster.worker_urls:
            members.know(url)
        return members

    def _swaps(self) -> Swaps:
        limits = Limits(self.settings.cluster.drain_s, self.settings.engine.start_timeout_s)
        turn = Turn(None if self.store is None else RedisTurn(self.store))
        return Swaps(self.members, self.telemetry, self.clock, limits, turn)

    def _metrics(self) -> Metrics | None:
        settings = self.settings
        return Metrics(VERSION, settings.engine.type, settings.routing.policy) if settings.telemetry.metrics else None

    def _telemetry(self) -> list[Telemetry]:
        logs = self.settings.logs
        as_json = logs.format == "json" or (logs.format == "auto" and not sys.stderr.isatty())
        parts = (self.metrics, self.tracer, self.journal)
        backends: list[Telemetry] = [each for each in parts if each is not None]
        if logs.level in ("debug", "info"):
            unlogged = () if logs.level == "debug" else PROBED | {ADD_WORKER, WORKERS}
            words = None if as_json else Words(coloured=coloured(sys.stderr, os.environ))
            backends.append(RequestLog(self.log, words=words, unlogged=unlogged))
        return backends

    def _internal(self) -> InternalListener | None:
        """Its port is taken now, before a model is loaded."""
        host, port = self.settings.telemetry.metrics_host, self.settings.telemetry.metrics_port
        if port is None:
            return None
        taken = listener(Address(host, port, "METRICS_HOST", "set METRICS_PORT="))
        return InternalListener(taken, Probes(self.fleet, self.admission, self.metrics, self.heartbeat), self.siblings)

    def _tracer(self) -> "Tracer | None":
        """Where it is off, its SDK is not even imported."""
        telemetry = self.settings.telemetry
        if not telemetry.traced:
            return None
        from app.telemetry.tracing.sdk import NoExporter, Sdk
        from app.telemetry.tracing.tracer import Tracer

        dropped = self.metrics.spans_dropped if self.metrics else lambda spans: None
        try:
            sdk = Sdk.configured(telemetry.otel, VERSION)
        except NoExporter as error:
            raise BadSetting(str(error)) from None
        engine = self.settings.engine.type
        return Tracer(sdk, engine, self.clock, _unix_now, dropped, self._collector_changed)

    def _instrument(self, behind: FastAPI, tracer: "Tracer") -> None:
        from app.telemetry.tracing.instrumentation import instrument

        instrument(behind, tracer.provider, self.settings.telemetry.otel, lambda scope: scope[RECORD], PROBED)

    def _collector_changed(self, available: bool, reason: str) -> None:
        self.telemetry.note(CollectorChanged(available, reason))

    def _shared_store(self) -> SharedStore | None:
        storage = self.settings.storage
        if storage.redis_url is None:
            return None
        url = storage.redis_url.get_secret_value()
        try:
            return SharedStore(url, storage.redis_timeout_s, self.clock, self._store_changed)
        except UnusableStore as error:
            raise BadSetting(str(error)) from None

    def _books(self) -> Books:
        storage = self.settings.storage
        return Books(Ledger(_utc_today), storage.state_dir, storage.ledger_flush_s, self.store, self.clock)

    def _pipeline(self) -> Pipeline:
        routing = self.settings.routing
        dispatch = Dispatch(
            self.fleet,
            Retry(attempts=routing.max_attempts),
            self.retries,
            HedgeDelay(routing.hedge_share, self.clock),
            self.telemetry,
            self.clock,
            on_delay=self.metrics.event_delay if self.metrics else lambda seconds: None,
        )
        return Pipeline(
            self.replays,
            self.fleet,
            Estimates(),
            self.quota,
            self.admission,
            dispatch,
            self.books.ledger,
            self.metrics.settled if self.metrics else lambda call, used: None,
        )

    def _answers(self) -> AnswerStore:
        """Finished answers: shared, or in a file that a restart finds again."""
        rules = self.settings.idempotency
        if self.store is not None:
            return SharedAnswers(AnswerKeys(self.store, self.clock, rules.kept_s, rules.lease_s))
        path = self.settings.storage.state_dir / "answers.sqlite"
        return EmbeddedAnswers(AnswerFile(path, rules.disk_bytes, rules.kept_s, _unix_now))

    def _store_changed(self, available: bool, reason: str) -> None:
        self.telemetry.note(StoreChanged(available, reason))

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


def _leave_what_stays_to_the_end() -> None:
    """What is built by now lives as long as the process. Looking through it for garbage, again and again, took a tenth
    of each request's CPU (`python -m bench.http_stack`); what requests leave behind is hardly ever cyclic.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, YOUNG_LOOKS)


def _utc_today() -> date:
    return datetime.now(UTC).date()


def _unix_now() -> float:
    return datetime.now(UTC).timestamp()
