"""One running engine, as the gateway knows it."""

from enum import StrEnum
from types import TracebackType
from typing import Self

from app.engines.base import Engine


class State(StrEnum):
    STARTING = "starting"
    """It has not answered a probe yet."""
    READY = "ready"
    FAILING = "failing"
    """It answered once and does not now."""


class Replica:
    """A `with` block over a replica is a lease: counted while it lasts, given back on every way out."""

    __slots__ = ("engine", "missed_probes", "models", "name", "reason", "running", "state")

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        self.engine = engine
        self.state = State.STARTING
        self.reason = "not probed yet"
        self.models: dict[str, int | None] = {}
        """What it serves, or served when it last answered."""
        self.running = 0
        self.missed_probes = 0

    def __enter__(self) -> Self:
        self.running += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.running -= 1

    def __repr__(self) -> str:
        return f"<Replica {self.name} {self.state} running={self.running}>"
