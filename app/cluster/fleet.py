"""All replicas: who serves what, and which one answers a call; and what is to be served soon (docs/adr/0018)."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from app.cluster.replica import Lease, Replica, State
from app.errors import NoReplica, UnknownModel
from app.generation import Call
from app.reliability.circuit import CircuitState
from app.reliability.limit import Load
from app.telemetry.base import ReplicaChanged, Telemetry
from app.telemetry.record import Reason
from app.telemetry.story import MOST_CANDIDATES, Options
from app.tenant import ANONYMOUS, Priority, Tenant

Choice = tuple[Replica, Reason]

Policy = Callable[[Sequence[Replica], Call], Choice]
"""Chooses among replicas that are ready, serve the model and have room. There is at least one, in `Fleet` two."""

RECENT = 64
"""So many calls say what a sequence usually costs, and until they came it is this:"""
USUAL = 512.0

MAKES_WAY = "model_making_way"
LEAVING_S = 5.0
"""So long after it was refused a call may ask again whether a model has left, or is back because nothing took its
place."""

_INTERACTIVE, _CLOSED = Priority.INTERACTIVE, CircuitState.CLOSED
"""Looked up once: a look into an enumeration takes longer than a call."""


@dataclass(frozen=True)
class Prospect:
    """What somebody is known for who has no ready replica: a worker that loads, or one that has failed."""

    models: tuple[str, ...]
    coming: bool
    """Calls may wait for them. Otherwise they are known, and refused."""
    slots: int = 1
    """How many calls at once it will answer."""
    ready_at: float | None = None
    """On the gateway's clock, where that can be guessed."""


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
        self.tells_options = False
        """Leases say what there was to choose from."""
        self._replicas: dict[str, Replica] = {}
        self._ready: dict[str, list[Replica]] = {}
        """By model. Made anew when a replica changes, so that a request only looks it up."""
        self._leaving: dict[str, list[Replica]] = {}
        """Those that drain, by models that nobody else serves or is about to. They serve who waits already."""
        self._coming: dict[str, Prospect] = {}
        """Models without a ready replica, and what all who bring them bring together."""
        self._absent: dict[str, tuple[tuple[str, str], ...]] = {}
        """By model, those that are not ready, or drain: name and standing."""
        self._models: dict[str, int | None] = {}
        self._served: dict[str, int | None] = {}
        self._prospects: dict[str, Prospect] = {}
        self._tokens_each = USUAL

    @property
    def replicas(self) -> list[Replica]:
        return list(self._replicas.values())

    @property
    def models(self) -> dict[str, int | None]:
        """Every model that is known, with the shortest context told for it; one without a ready replica stays known."""
        return self._models

    @property
    def served(self) -> dict[str, int | None]:
        """Those of them that replicas serve, without those that are only coming, or leaving."""
        return self._served

    @property
    def coming(self) -> tuple[str, ...]:
        """Models that nobody serves yet, and somebody soon will."""
        return tuple(self._coming)

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

    def foretell(self, who: str, prospect: Prospect | None) -> None:
        """`who` is known for this from now on; `None`: for nothing but its replica."""
        if prospect != self._prospects.get(who):
            if prospect is None:
                del self._prospects[who]
            else:
                self._prospects[who] = prospect
            self._index()

    def drain(self, replica: Replica) -> None:
        """It is given nothing new, but by those that wait for what nobody else serves."""
        self._turn_to(replica, draining=True)

    def admit(self, replica: Replica) -> None:
        self._turn_to(replica, draining=False)

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
        usable = [each for each in self._models if each not in self._leaving and tenant.may_use(each)]
        if len(usable) > 1:
            raise UnknownModel("Several models are served here: name one in 'model'.", param="model")
        if self._models and not usable:
            raise UnknownModel(param="model")
        return usable[0] if usable else ""

    def lease(
        self, call: Call, avoiding: Container[str] = (), cost: float = 1.0, *, waited: bool = False
    ) -> Lease | None:
        """Choose a replica and count the call on it, in one step, so that no two choices see one count.

        `cost`: how many tokens of work it is expected to be. `waited`: it has stood in the line; then the last replica
        of its model takes it even while it drains. `None`: those that could answer are full, or still to come.
        `NoReplica`: there is none that could.
        """
        free = _free(self._ready.get(call.model, ()), call, avoiding)
        if not free and waited:
            free = _free(self._leaving.get(call.model, ()), call, avoiding)
        if not free:
            self._expect_one(call.model, avoiding, waited=waited)
            return None
        replica, reason = self._choose(free, call) if len(free) > 1 else (free[0], Reason.ONLY)
        options = self._options(call.model, replica) if self.tells_options else None
        if call.prefix:
            replica.prefixes.remember(call.prefix)
        self._tokens_each += (cost / call.choices - self._tokens_each) / RECENT
        return Lease(replica, self._released, cost, call.choices, reason, len(free), options)

    def is_full_for(self, call: Call) -> bool:
        """There are replicas that could answer one that waits, or will be, and none of them has room."""
        if call.model in self._coming:
            return True
        serving = self._ready.get(call.model) or self._leaving.get(call.model) or []
        return any(replica.circuit.allows() for replica in serving) and not _free(serving, call, ())

    def slots(self, model: str) -> int:
        """How many calls for this model can run at once, now, or once it is there."""
        if model in self._coming:
            return self._coming[model].slots
        return sum(replica.slots for replica in self._ready.get(model, ()) if replica.circuit.allows())

    def ready_at(self, model: str) -> float | None:
        """When a model that is coming will be there, as far as that can be guessed."""
        return self._coming[model].ready_at if model in self._coming else None

    @property
    def capacity(self) -> int:
        """How many calls can run at once, now, whatever their model."""
        return sum(
            each.slots
            for each in self._replicas.values()
            if each.state is State.READY and not each.draining and each.circuit.allows()
        )

    def has_other(self, model: str, than: Container[str]) -> bool:
        """Is there a replica that could answer, now or when it has room, besides these?"""
        ready = self._ready.get(model, ())
        return any(replica.name not in than and replica.circuit.allows() for replica in ready)

    def standing(self, model: str) -> str:
        """How it is with a model that is known, in one word."""
        if model in self._ready:
            return "ready"
        if model in self._coming:
            return "coming"
        return "leaving" if model in self._leaving else "unavailable"

    def context_of(self, model: str) -> int | None:
        return self._models.get(model)

    def _expect_one(self, model: str, avoiding: Container[str], *, waited: bool) -> None:
        """The reason why nobody can answer, if nobody can."""
        if model in self._coming:
            return
        ready = self._ready.get(model, ())
        if not ready and model in self._leaving:
            if not waited:
                raise NoReplica("This model is making way for another one.", code=MAKES_WAY, retry_after=LEAVING_S)
            ready = self._leaving[model]
        if not ready:
            raise NoReplica(retry_after=1.0)
        others = [replica for replica in ready if replica.name not in avoiding]
        if not any(replica.circuit.allows() for replica in others):
            pause_s = min((replica.circuit.reopens_in() for replica in others), default=1.0)
            text = "Every replica of this model has failed too often and is being given a pause."
            raise NoReplica(text, code="circuit_open", retry_after=max(1.0, pause_s))

    def _options(self, model: str, chosen: Replica) -> Options:
        """As they are now; this is on every call's way."""
        able = looked_at = self._ready.get(model) or self._leaving[model]
        if len(able) > MOST_CANDIDATES:
            looked_at = able[:MOST_CANDIDATES]
            if chosen not in looked_at:
                looked_at[-1] = chosen
        # written out: `attrgetter` or a method would make it twice as dear
        seen = [(r.name, r.running, r.slots, r.reserved, r.load, r.beside, r.circuit.state) for r in looked_at]
        return seen, len(able), self._absent.get(model, ())

    def _released(self, replica: Replica) -> None:
        self.on_room(replica)

    def _has(self, replica: Replica) -> bool:
        """A probe or a call may outlive the membership of its replica."""
        return self._replicas.get(replica.name) is replica

    def _turn_to(self, replica: Replica, *, draining: bool) -> None:
        if self._has(replica) and replica.draining is not draining:
            replica.draining = draining
            self._changed(replica)

    def _changed(self, replica: Replica) -> None:
        self._index()
        self._telemetry.note(ReplicaChanged(replica.name, replica.standing, replica.reason))

    def _index(self) -> None:
        ready: dict[str, list[Replica]] = {}
        draining: dict[str, list[Replica]] = {}
        absent: dict[str, tuple[tuple[str, str], ...]] = {}
        models: dict[str, int | None] = {}
        for replica in self._replicas.values():
            for model, length in replica.models.items():
                known = models.get(model)
                models[model] = known if length is None else min(length, known or length)
            if replica.state is State.READY:
                for model in replica.models:
                    (draining if replica.draining else ready).setdefault(model, []).append(replica)
            if replica.state is not State.READY or replica.draining:
                for model in replica.models:
                    absent[model] = (*absent.get(model, ()), (replica.name, replica.standing))
        prospects = self._prospects.values()
        coming = {model for each in prospects if each.coming for model in each.models if model not in ready}
        self._ready = ready
        self._absent = absent
        self._coming = {model: _together([each for each in prospects if model in each.models]) for model in coming}
        self._leaving = {model: last for model, last in draining.items() if model not in ready and model not in coming}
        self._served = {model: length for model, length in models.items() if model not in self._leaving}
        self._models = models | {model: None for each in prospects for model in each.models if model not in models}
        self.on_change()


def _free(replicas: Sequence[Replica], call: Call, avoiding: Container[str]) -> list[Replica]:
    """Those that may take it now. It is asked of every replica for each call, and so makes no calls where it can."""
    interactive = call.priority is _INTERACTIVE
    return [
        r
        for r in replicas
        if r.running < (r.slots if interactive else r.slots - r.reserved)
        and (r.circuit.state is _CLOSED or r.circuit.allows())
        and r.name not in avoiding
    ]


def _together(prospects: Sequence[Prospect]) -> Prospect:
    """Of one model: it is there as soon as the first of them brings it."""
    coming = [each for each in prospects if each.coming]
    guesses = [each.ready_at for each in coming if each.ready_at is not None]
    return Prospect((), True, sum(each.slots for each in coming), min(guesses, default=None))
