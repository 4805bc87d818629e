"""One running engine, as the gateway knows it, and the leases on it."""

import sys
import time
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Self

from app.cluster.foreign import Foreign
from app.cluster.prefixes import Prefixes
from app.engines.base import Engine
from app.reliability.circuit import Circuit, CircuitState
from app.reliability.limit import AdaptiveLimit, Load
from app.telemetry.record import Reason
from app.telemetry.story import Options


class State(StrEnum):
    STARTING = "starting"
    """It has not answered a probe yet."""
    READY = "ready"
    FAILING = "failing"
    """It answered once and does not now."""


class Replica:
    __slots__ = (
        "_began_with",
        "address",
        "beside",
        "circuit",
        "draining",
        "engine",
        "foreign",
        "limit",
        "load",
        "missed_probes",
        "models",
        "name",
        "prefixes",
        "reason",
        "reserved",
        "running",
        "said",
        "sequences",
        "slots",
        "state",
        "tells_load",
    )

    def __init__(
        self,
        name: str,
        engine: Engine,
        *,
        slots: int = sys.maxsize,
        reserved: int = 0,
        circuit: Circuit | None = None,
        limit: AdaptiveLimit | None = None,
        address: tuple[str, int] | None = None,
    ) -> None:
        self.name = name
        self.address = address
        """Where it is reached, if that is somewhere."""
        self.engine = engine
        self.state = State.STARTING
        self.reason = "not probed yet"
        self.draining = False
        """Its worker wants it to have nothing new. What it has goes on."""
        self.models: dict[str, int | None] = {}
        """What it serves, or served when it last answered."""
        self.running = 0
        self.load = 0
        """Tokens of work that those who run are expected to be."""
        self.sequences = 0
        """Answers that they ask for: one call may ask for several."""
        self.foreign = Foreign()
        self.said: Load | None = None
        """Its own account of its load, while that is fresh."""
        self.beside = 0
        """Tokens of work that others give it, as far as can be told."""
        self.prefixes = Prefixes()
        self.slots = slots
        """How many may run at once."""
        self.reserved = reserved
        """How many of them only interactive calls may take."""
        self._began_with = slots, reserved
        self.circuit = circuit or Circuit(5, 5.0, 60.0, time.monotonic, lambda state: None)
        self.limit = limit
        """What moves `slots`, if they are to move."""
        self.missed_probes = 0
        self.tells_load = True
        """Not every engine does; one that does not is not asked again until it comes anew."""

    @property
    def standing(self) -> str:
        """Its state in one word, for people."""
        return "draining" if self.draining and self.state is State.READY else self.state.value

    @property
    def busy(self) -> float:
        """Tokens of work for each slot."""
        return (self.load + self.beside) / self.slots

    @property
    def taken(self) -> int:
        """Slots that are not free for everybody."""
        return max(self.running, min(self.slots, self.running + self.reserved))

    def resize(self, slots: int) -> None:
        """The reserve keeps its share: a limit that sinks below it would leave nothing to the others."""
        whole, reserved = self._began_with
        self.slots = slots
        self.reserved = slots * reserved // whole

    def told(self, load: Load, tokens_each: float) -> None:
        """Its own account, beside ours; a sequence that is not ours is as large as ours are."""
        self.said = load
        self.foreign.told(load, self.sequences)
        self.beside = round(self.foreign.sequences * tokens_each)

    def untold(self) -> None:
        """It should have told, and has not."""
        self.said = None
        self.foreign.untold()
        self.beside //= 2

    def begins_anew(self) -> None:
        """With an empty cache, and with nothing left to do."""
        self.prefixes.forget()
        self.said = None
        self.foreign = Foreign()
        self.beside = 0
        self.tells_load = True

    def __repr__(self) -> str:
        return f"<Replica {self.name} {self.state} running={self.running}/{self.slots}>"


class Lease:
    """A slot on a replica: counted from the moment it is made until it is released, which the holder does once.
    What its call is expected to cost counts with it, and ends with it.

    What became of the call is said before that (`succeeded`, `failed`); unsaid, it says nothing about the replica.
    """

    __slots__ = (
        "_cost",
        "_entry",
        "_on_room",
        "_sequences",
        "_settled",
        "among",
        "held",
        "options",
        "reason",
        "replica",
    )

    def __init__(
        self,
        replica: Replica,
        on_room: Callable[[Replica], None],
        cost: float = 1.0,
        sequences: int = 1,
        reason: Reason = Reason.ONLY,
        among: int = 1,
        options: Options | None = None,
    ) -> None:
        """`reason`: why it is this replica, of so many (`among`) that could have been it; `options`: how those stood,
        and the others, where somebody wants to know."""
        self.replica = replica
        self.reason = reason
        self.among = among
        self.options = options
        self.held = True
        self._cost = max(1, round(cost))  # whole, so that what is added and taken away leaves nothing over
        self._sequences = sequences
        self._settled = False
        self._on_room = on_room
        replica.running += 1
        replica.load += self._cost
        replica.sequences += sequences
        replica.foreign.ours(replica.sequences)
        self._entry = replica.circuit.entered()

    def answers(self) -> None:
        """It has begun to. For a replica on trial that is proof enough: the answer itself may take minutes."""
        if not self._settled and self.replica.circuit.state is not CircuitState.CLOSED:
            self.succeeded()

    def succeeded(self) -> None:
        if not self._settled:
            self._settled = True
            circuit = self.replica.circuit
            before = circuit.state
            circuit.succeeded(self._entry)
            if circuit.state is not before:  # it has been on trial: now there is room for more than one
                self._on_room(self.replica)

    def failed(self) -> None:
        if not self._settled:
            self._settled = True
            self.replica.circuit.failed(self._entry)

    def release(self) -> None:
        if self.held:
            self.held = False
            if not self._settled:
                self._settled = True
                self.replica.circuit.abandoned(self._entry)
            self.replica.running -= 1
            self.replica.load -= self._cost
            self.replica.sequences -= self._sequences
            self._on_room(self.replica)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()
