"""The words between gateways, workers and the command line: what a worker is doing, and what it can be told.

A worker owns one engine and its GPUs (ADR 17). A gateway speaks to it through the `Worker` protocol: to one in its own
process directly, to any other over HTTP. Nobody is sent news: whoever wants to know looks, and a look may wait for a
change. So a gateway that was away has missed nothing.
"""

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Protocol

import msgspec


class WorkerState(StrEnum):
    EMPTY = "empty"
    """No engine; its GPUs are free."""
    LOADING = "loading"
    """An engine starts: for the first time, for another model, or again after it died."""
    READY = "ready"
    DRAINING = "draining"
    """The engine finishes what it has; nothing new is to be sent to it."""
    STOPPED = "stopped"
    """The worker's last word: its process ends, and nothing of its engine is left."""
    FAILED = "failed"
    """Its engine cannot be brought up, and nobody tries any more."""


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a worker is to serve."""

    model: str
    """A path that the worker can read, or a name on the model hub."""
    names: tuple[str, ...] = ()
    """What callers call it; empty: a folder by its last part, anything else by its own name."""
    args: tuple[str, ...] | None = None
    """Further words of the engine's command line; `None`: those that the worker was started with."""
    id: str = ""
    """Chosen by whoever gives the order, to know it again in a status."""


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter on top of the model: served under a name of its own."""

    name: str
    path: str


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a change has come."""

    step: str
    """`draining`, `stopping`, `starting`, `loading`, `trying`, `returning` (to what it served before)."""
    part: float | None = None
    """Of the loading, from 0 to 1, where the engine tells."""
    said: str = ""
    """The engine's latest line."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An order that could not be carried out. What was served before is served again, if there was anything."""

    order: Order
    reason: str
    """A sentence."""
    tail: tuple[str, ...] = ()
    """The engine's own last lines."""


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that there is to know of a worker at one moment."""

    name: str
    life: str
    """Drawn anew at each start of its process, so that a restarted worker is told from the one before."""
    version: int
    """Counts the changes of this life."""
    state: WorkerState
    engine: str
    """`transformers`, `vllm` or `command`."""
    engine_url: str | None = None
    """Where its engine is reached from other machines, while there is one."""
    order: Order | None = None
    """What it serves or is about to."""
    names: tuple[str, ...] = ()
    """What callers call that."""
    coming: tuple[str, ...] = ()
    """While it drains to make way for something else: what callers will call that."""
    adapters: tuple[Adapter, ...] = ()
    progress: Progress | None = None
    reason: str = ""
    """Why it is in this state, where that needs saying: a sentence."""
    failure: Failure | None = None
    """The last order that failed, until another one succeeds."""
    gpus: tuple[str, ...] = ()
    starts: int = 0
    """How often an engine was started in this life."""
    software: str = ""
    """The worker's own version."""


class Released(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The engine and all that it started are gone."""

    proved: bool
    """The GPUs' own account shows their memory free."""
    note: str = ""
    """Why that could not be seen, if it could not: a sentence."""


class Worker(Protocol):
    """As a gateway sees it. Every method may raise a `ClusterError`."""

    @property
    def name(self) -> str: ...

    async def status(self, after: int = -1, wait_s: float = 0.0) -> Status:
        """At once if it has changed since version `after`; otherwise when it does, or `wait_s` have passed."""
        ...

    async def load(self, order: Order, *, drain_s: float, force: bool = False) -> Status:
        """Begin to serve this. Returns before it does: what becomes of it stands in the status. Nothing to do where
        the same is served already, unless `force`. `LoadInProgress` while another order is being carried out.
        """
        ...

    async def release(self, *, drain_s: float) -> Released:
        """Stop the engine; an order that is being carried out is given up. Returns when its memory is back."""
        ...

    async def drain(self) -> Status:
        """Take nothing new, keep the engine."""
        ...

    async def admit(self) -> Status:
        """The opposite of `drain`."""
        ...

    async def put_adapter(self, adapter: Adapter) -> Status:
        """Returns when it is served. The worker keeps it there when its engine has to be started again."""
        ...

    async def drop_adapter(self, name: str) -> Status: ...

    def logs(self, lines: int, *, follow: bool = False) -> AsyncIterator[bytes]:
        """What the engine said last; and what it says from now on, if wanted."""
        ...

    async def aclose(self) -> None:
        """Give back connections. The worker itself goes on."""
        ...
