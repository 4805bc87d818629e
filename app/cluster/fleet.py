"""All replicas: who serves what, and which one answers a call."""

from collections.abc import Callable, Container, Sequence

from app.cluster.replica import Replica, State
from app.errors import NoReplica, UnknownModel
from app.generation import Call
from app.telemetry.base import ReplicaChanged, Telemetry
from app.tenant import ANONYMOUS, Tenant

Policy = Callable[[Sequence[Replica], Call], Replica]
"""Chooses among replicas that are ready and serve the model; there is at least one."""


class Fleet:
    def __init__(self, choose: Policy, telemetry: Telemetry) -> None:
        self._choose = choose
        self._telemetry = telemetry
        self._replicas: dict[str, Replica] = {}
        self._ready: dict[str, list[Replica]] = {}
        """By model. Made anew when a replica changes, so that a request only looks it up."""
        self._models: dict[str, int | None] = {}

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
        if not self._has(replica) or (replica.state is State.READY and replica.models == models):
            return
        replica.models = models
        replica.state, replica.reason = State.READY, ""
        self._changed(replica)

    def failed(self, replica: Replica, reason: str) -> None:
        """It does not answer. One that never did goes on starting."""
        if self._has(replica) and replica.state is State.READY:
            replica.state, replica.reason = State.FAILING, reason
            self._changed(replica)

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

    def lease(self, call: Call, avoiding: Container[str] = ()) -> Replica:
        """Choose a replica; entering it counts it. Nothing is awaited in between, so no two choices see one count."""
        ready = self._ready.get(call.model, ())
        if avoiding:
            ready = [replica for replica in ready if replica.name not in avoiding]
        if not ready:
            raise NoReplica(retry_after=1.0)
        return self._choose(ready, call) if len(ready) > 1 else ready[0]

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
