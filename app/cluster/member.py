"""One worker, as this gateway knows it: where it is looked at, what was seen last, and what it served."""

import asyncio
from enum import StrEnum
from pathlib import PurePosixPath
from posixpath import normpath

from app.cluster.control import Order, Status, Worker, WorkerState
from app.cluster.replica import Replica, State

EVERYWHERE = "all-"
"""How the ids of orders begin that were given to all workers. The moment follows, so that later ones are greater."""


HERE = "here:"
"""The address of one in this process."""


class Standing(StrEnum):
    """What a worker's own state does not say."""

    NEW = "new"
    """It has not been seen yet."""
    SEEN = "seen"
    LOST = "lost"
    """It does not answer any more."""
    GONE = "gone"
    """It has said its last word."""


class Member:
    def __init__(self, worker: Worker, address: str, now: float, *, fixed: bool = False) -> None:
        """`fixed`: somebody wrote its address down, so it is never forgotten."""
        self.worker = worker
        self.address = address
        self.fixed = fixed
        self.standing = Standing.NEW
        self.status: Status | None = None
        self.reason = ""
        """Why it is not seen."""
        self.since = now
        """When it came into the state it is in."""
        self.seen_at = now
        self.misses = 0
        self.replica: Replica | None = None
        self.engine: tuple[str, int, str] | None = None
        """Which life of which engine the replica stands for."""
        self.served: Order | None = None
        """What it is told when it comes back with nothing."""
        self.released = False
        """It was emptied on purpose, and is not told anything."""
        self.told = ""
        """The life in which it was told, so that it is told once."""
        self.loads_since: float | None = None
        self.woken = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def name(self) -> str:
        return self.status.name if self.status is not None else self.worker.name

    @property
    def in_process(self) -> bool:
        return self.address.startswith(HERE)

    @property
    def present(self) -> bool:
        return self.standing is Standing.SEEN

    @property
    def state(self) -> str:
        """Its own, or why it has none."""
        if self.standing is Standing.GONE:
            return WorkerState.STOPPED.value
        return self.status.state.value if self.present and self.status is not None else self.standing.value

    @property
    def version(self) -> int:
        return self.status.version if self.present and self.status is not None else -1

    @property
    def order(self) -> Order | None:
        """What it serves or is about to."""
        return self.status.order if self.present and self.status is not None else None

    @property
    def ready(self) -> bool:
        """Calls go to it."""
        return self.present and self.status is not None and self.status.state is WorkerState.READY

    @property
    def empty(self) -> bool:
        return self.status is not None and self.status.state is WorkerState.EMPTY

    @property
    def answers(self) -> bool:
        """Its engine has been asked from here, and is well."""
        return self.replica is not None and self.replica.state is State.READY

    def bears(self, adapter: str) -> bool:
        return self.status is not None and any(each.name == adapter for each in self.status.adapters)

    def serves(self, order: Order) -> bool:
        """This order or one like it has been carried out."""
        status = self.status
        if not self.ready or status is None or status.order is None:
            return False
        if order.id and status.order.id == order.id:
            return True
        alike = order.model == status.order.model and order.args in (None, status.order.args)
        return alike and set(names_of(order)) <= set(status.names)

    def changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def news(self) -> None:
        """Returns when it has been looked at once more, or is lost."""
        await self._changed.wait()


def names_of(order: Order) -> tuple[str, ...]:
    """What callers will call it, as far as can be told from here: whether a relative path is a folder, only its worker
    knows."""
    if order.names:
        return order.names
    is_path = order.model.startswith(("/", "./", "../", "~"))
    return (PurePosixPath(normpath(order.model)).name or order.model,) if is_path else (order.model,)
