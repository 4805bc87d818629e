"""All replicas: who serves what, and which one answers a call."""

from collections.abc import Callable, Container, Sequence

from app.cluster.replica import Lease, Replica, State
from app.errors import NoReplica, UnknownModel
from app.generation import Call
from app.reliability.limit import Load
from app.telemetry.base import ReplicaChanged, Telemetry
from app.telemetry.record import Reason
from app.tenant import ANONYMOUS, Tenant

Choice = tuple[Replica, Reason]

Policy = Callable[[Sequence[Replica], Call], Choice]
"""Chooses among replicas that are ready, serve the model and have room. There is at least one, in `Fleet` two."""

RECENT = 64
"""So many calls say what a sequence usually costs, and until they came it is this:"""
USUAL = 512.0

OnChange = Callable[[], None]
OnRoom = Callable[[Replica], None]


class Fleet:
    def __init__(self, choose: Policy, telemetry: Telemetry) -> None:
        self._choose = choose
        self._telemetry = telemetry
        self.on_room: OnRoom = lambda replica: None
        """A lease on this replica has ended, or it may run more than before."""
        self.on_change: OnChange = lambda: None
        """A replica has come, gone, or changed what it serves."""
        self.wanted: Callable[[Replica], bool] = lambda replica: False
        """Does anybody wait for room on this replica?"""
        self._replicas: dict[str, Replica] = {}
        self._ready: dict[str, list[Replica]] = {}
        """By model. Made anew when a replica changes, so that a request only looks it up."""
        self._models: dict[str, int | None] = {}
        self._tokens_each = USUAL

    @property
    def replicas(self) -> list[Replica]:
        return list(self._replicas.values())

    @property
    def models(self) -> dict[str, int | None]:
        """Every model that is known, with the shortest context told for it; one without a ready replica stays known."""
        return self._models

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def add(self, replica: Replica) -> None:
        self._replicas[replica.name] = replica
        self._changed(replica)

    def remove(self, name: str) -> None:
        self._replicas.pop(name)
        self._index()
        self._telemetry.note(ReplicaChanged(name, "removed", ""))

    def find(self, name: str) -> Replica | None:
        return self._replicas.get(name)

    def answered(self, replica: Replica, models: dict[str, int | None]) -> None:
        """A probe found it well."""
        replica.missed_probes = 0
        if not self._has(replica):
            return
        if replica.state is State.READY and replica.models == models:
            self.on_room(replica)  # its circuit's pause may have ended, which nobody else tells
            return
        if replica.state is not State.READY or not replica.models.keys() <= models.keys():
            replica.begins_anew()
        replica.models = models
        replica.state, replica.reason = State.READY, ""
        self._changed(replica)

    def failed(self, replica: Replica, reason: str) -> None:
        """It does not answer. One that never did goes on starting."""
        if self._has(replica) and replica.state is State.READY:
            replica.state, replica.reason = State.FAILING, reason
            self._changed(replica)

    def resize(self, replica: Replica, slots: int) -> None:
        """From now on it may run so many; what runs beyond that may end."""
        grows = slots > replica.slots
        replica.resize(slots)
        if grows:
            self.on_room(replica)

    def told(self, replica: Replica, load: Load) -> None:
        """A replica's own account of what it works on."""
        replica.told(load, self._tokens_each)

    def resolve(self, model: str | None, tenant: Tenant = ANONYMOUS) -> str:
        """The model a request means: its own, or the only one there is for this tenant.

        One that the tenant may not use is unknown, whether it is served here or not.
        """
        if model is not None:
            if not tenant.may_use(model) or (model not in self._models and self._models):
                raise UnknownModel(param="model")
            return model
        usable = [each for each in self._models if tenant.may_use(each)]
        if len(usable) > 1:
            raise UnknownModel("Several models are served here: name one in 'model'.", param="model")
        if self._models and not usable:
            raise UnknownModel(param="model")
        return usable[0] if usable else ""

    def lease(self, call: Call, avoiding: Container[str] = (), cost: float = 1.0) -> Lease | None:
        """Choose a replica and count the call on it, in one step, so that no two choices see one count.

        `cost`: how many tokens of work it is expected to be. `None`: those that could answer are full. `NoReplica`:
        there is none that could.
        """
        free = [
            replica
            for replica in self._ready.get(call.model, ())
            if replica.has_room_for(call.priority) and replica.circuit.allows() and replica.name not in avoiding
        ]
        if not free:
            self._expect_one(call.model, avoiding)
            return None
        replica, reason = self._choose(free, call) if len(free) > 1 else (free[0], Reason.ONLY)
        if call.prefix:
            replica.prefixes.remember(call.prefix)
        self._tokens_each += (cost / call.choices - self._tokens_each) / RECENT
        return Lease(replica, self._released, cost, call.choices, reason)

    def is_full_for(self, call: Call) -> bool:
        """There are replicas that could answer, and none of them has room."""
        able = [replica for replica in self._ready.get(call.model, ()) if replica.circuit.allows()]
        return bool(able) and not any(replica.has_room_for(call.priority) for replica in able)

    def slots(self, model: str) -> int:
        """How many calls for this model can run at once, now."""
        return sum(replica.slots for replica in self._ready.get(model, ()) if replica.circuit.allows())

    @property
    def capacity(self) -> int:
        """How many calls can run at once, now, whatever their model."""
        return sum(
            each.slots for each in self._replicas.values() if each.state is State.READY and each.circuit.allows()
        )

    def has_other(self, model: str, than: Container[str]) -> bool:
        """Is there a replica that could answer, now or when it has room, besides these?"""
        ready = self._ready.get(model, ())
        return any(replica.name not in than and replica.circuit.allows() for replica in ready)

    def context_of(self, model: str) -> int | None:
        return self._models.get(model)

    def _expect_one(self, model: str, avoiding: Container[str]) -> None:
        """The reason why nobody can answer, if nobody can."""
        ready = self._ready.get(model, ())
        if not ready:
            raise NoReplica(retry_after=1.0)
        others = [replica for replica in ready if replica.name not in avoiding]
        if not any(replica.circuit.allows() for replica in others):
            pause_s = min((replica.circuit.reopens_in() for replica in others), default=1.0)
            text = "Every replica of this model has failed too often and is being given a pause."
            raise NoReplica(text, code="circuit_open", retry_after=max(1.0, pause_s))

    def _released(self, replica: Replica) -> None:
        self.on_room(replica)

    def _has(self, replica: Replica) -> bool:
        """A probe or a call may outlive the membership of its replica."""
        return self._replicas.get(replica.name) is replica

    def _changed(self, replica: Replica) -> None:
        self._index()
        self._telemetry.note(ReplicaChanged(replica.name, replica.state.value, replica.reason))

    def _index(self) -> None:
        ready: dict[str, list[Replica]] = {}
        models: dict[str, int | None] = {}
        for replica in self._replicas.values():
            for model, length in replica.models.items():
                known = models.get(model)
                models[model] = known if length is None else min(length, known or length)
            if replica.state is State.READY:
                for model in replica.models:
                    ready.setdefault(model, []).append(replica)
        self._ready, self._models = ready, models
        self.on_change()
