"""What the gateway's parts say of themselves when the metrics page is made. Nothing here changes anything, and any
thread may ask.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from app.clock import Clock
from app.cluster.control import WorkerState
from app.cluster.fleet import Fleet
from app.cluster.member import Standing
from app.cluster.members import Members
from app.cluster.replica import Replica, State
from app.gateway.admission import Admission
from app.gateway.connections import Connections
from app.gateway.line import Line
from app.gateway.replays import Replays
from app.reliability.circuit import CircuitState
from app.reliability.quota import LocalQuota
from app.reliability.retry import RetryBudget
from app.reliability.stores.books import Books
from app.reliability.stores.redis import SharedStore
from app.reliability.stores.redis_quota import RedisQuota
from app.telemetry.logs import LogWriter
from app.telemetry.metrics import families as f
from app.telemetry.metrics.labels import MOST_MODELS, OTHER
from app.telemetry.metrics.tallies import Reading

STATES = (*WorkerState, Standing.LOST)


@dataclass(frozen=True)
class Readings:
    fleet: Fleet
    admission: Admission
    places: float
    quota: LocalQuota | RedisQuota
    retries: RetryBudget
    replays: Replays
    books: Books
    store: SharedStore | None
    members: Members
    connections: Connections
    log: LogWriter
    clock: Clock

    def __call__(self) -> Iterator[Reading]:
        yield from self._lines()
        yield from self._replicas()
        yield from self._cluster()
        yield Reading(f.PLACES, self.places)
        yield Reading(f.RESERVATIONS, self.quota.running)
        yield Reading(f.KEYED_RUNS, len(self.replays))
        if (left := self.retries.left) is not None:
            yield Reading(f.RETRY_BUDGET, left)
        yield Reading(f.RETRIES_DENIED, self.retries.denied)
        yield Reading(f.LEDGER_UNWRITTEN, self.books.unwritten)
        yield Reading(f.LEDGER_AGE, self.books.age_s)
        yield Reading(f.LEDGER_FAILURES, self.books.failures)
        if self.store is not None:
            yield Reading(f.STORE_UP, self.store.available)
        yield Reading(f.LINES_DROPPED, self.log.dropped)
        yield Reading(f.CONNECTIONS, self.connections.open)
        yield Reading(f.MOST_CONNECTIONS, self.connections.most)
        yield Reading(f.CONNECTIONS_REFUSED, self.connections.refused)

    def _lines(self) -> Iterator[Reading]:
        """Of models that are there, and of those that somebody waits for still."""
        now, lines = self.clock(), self.admission.lines
        waited_for = [model for model, line in lines.items() if len(line)]
        together: dict[str, list[Line]] = {}
        for model in dict.fromkeys((*self.fleet.models, *waited_for)):
            label = model if len(together) < MOST_MODELS else OTHER
            together.setdefault(label, []).extend([lines[model]] if model in lines else [])
        for label, them in together.items():
            yield Reading(f.QUEUED, sum(map(len, them)), (label,))
            yield Reading(f.QUEUED_TOKENS, sum(line.prompt_tokens for line in them), (label,))
            yield Reading(f.QUEUE_AGE, max((line.oldest_s(now) for line in them), default=0.0), (label,))

    def _replicas(self) -> Iterator[Reading]:
        replicas = self.fleet.replicas
        yield Reading(f.SLOTS, self.fleet.capacity)
        yield Reading(f.SLOTS_TAKEN, sum(replica.running for replica in replicas))
        for replica in replicas:
            yield from _of(replica)

    def _cluster(self) -> Iterator[Reading]:
        workers, gpus = dict.fromkeys(map(str, STATES), 0), defaultdict[str, int](int)
        for member in self.members:
            workers[member.state] += 1
            gpus[member.state] += len(member.status.gpus) if member.status is not None else 0
        for state, count in workers.items():
            yield Reading(f.WORKERS, count, (state,))
            if state != WorkerState.STOPPED:
                yield Reading(f.GPUS, gpus[state], (state,))


def _of(replica: Replica) -> Iterator[Reading]:
    name = (replica.name,)
    yield Reading(f.READY, replica.state is State.READY and not replica.draining, name)
    yield Reading(f.RUNNING, replica.running, name)
    yield Reading(f.REPLICA_SLOTS, replica.slots, name)
    yield Reading(f.CIRCUIT_OPEN, replica.circuit.state is not CircuitState.CLOSED, name)
    said = replica.said
    if said is not None and replica.state is State.READY:
        yield Reading(f.ENGINE_RUNNING, said.running, name)
        yield Reading(f.ENGINE_WAITING, said.waiting, name)
        if said.kv_share is not None:
            yield Reading(f.ENGINE_KV, said.kv_share, name)
