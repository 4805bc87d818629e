"""Workers that do as a test says: they drain, load and fail when they are told, at once or step by step."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from app.cluster.control import Adapter, Failure, Order, Progress, Released, Status, WorkerState
from app.engines.scripted import Scripted
from app.errors import ClusterError, LoadFailed, LoadInProgress, UnknownAdapter

TAIL = ("engine: loading weights", "engine: out of memory")


class ScriptedWorker:
    """It stands in for a worker and, with `engine`, for its engine too. An `async with` block ends its own work."""

    def __init__(self, name: str = "w1", model: str | None = None, *, life: str = "life-1") -> None:
        self.now = Status(name=name, life=life, version=0, state=WorkerState.EMPTY, engine="scripted", software="test")
        self.engine = Scripted(serves={})
        self.told: list[Any] = []
        """Orders, and words of one, as they came."""
        self.broken: set[str] = set()
        """Models that cannot be loaded."""
        self.refuses_adapters: ClusterError | None = None
        self.gate = asyncio.Event()
        """While it is closed nothing that takes time comes to its end."""
        self.gate.set()
        self.away: ClusterError | None = None
        """Raised by every call."""
        self.looks = 0
        self._changed = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        if model is not None:
            self.serves(Order(model=model))

    @property
    def name(self) -> str:
        return self.now.name

    @property
    def loads(self) -> list[Order]:
        return [each for each in self.told if isinstance(each, Order)]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    # --- what a test does with it ---------------------------------------------------------------------------------

    def becomes(self, state: WorkerState | None = None, **fields: Any) -> None:
        fields |= {} if state is None else {"state": state}
        self.now = msgspec.structs.replace(self.now, version=self.now.version + 1, **fields)
        self._changed.set()
        self._changed = asyncio.Event()

    def serves(self, order: Order) -> None:
        names = order.names or (order.model.rpartition("/")[2],)
        self.engine.serves = dict.fromkeys(names, 2_048)
        self.engine.revive()
        self.becomes(
            WorkerState.READY,
            order=order,
            names=names,
            adapters=(),
            progress=None,
            reason="",
            engine_url=f"http://127.0.0.1:9/{self.name}",
            starts=self.now.starts + 1,
        )

    def empties(self) -> None:
        self.becomes(WorkerState.EMPTY, order=None, names=(), adapters=(), engine_url=None, progress=None)

    def dies(self, error: ClusterError) -> None:
        self.away = error
        self.engine.die()
        self._changed.set()

    def returns(self, life: str) -> None:
        """Its process was started again, and owns nothing yet."""
        self.away = None
        self.now = Status(name=self.name, life=life, version=0, state=WorkerState.EMPTY, engine="scripted")

    # --- what gateways ask ----------------------------------------------------------------------------------------

    async def status(self, after: int = -1, wait_s: float = 0.0) -> Status:
        self._check()
        self.looks += 1
        if after == self.now.version and wait_s:
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
        self._check()
        return self.now

    async def load(self, order: Order, *, drain_s: float, force: bool = False) -> Status:
        self._check()
        if self._busy:
            raise LoadInProgress
        self.told.append(order)
        served = self.now.order
        if self.now.state is WorkerState.READY and served and served.model == order.model and not force:
            return self.now
        former = served if self.now.state in (WorkerState.READY, WorkerState.DRAINING) else None
        kept_out = self.now.state is WorkerState.DRAINING
        if former is not None:
            coming = order.names or (order.model.rpartition("/")[2],)
            self.becomes(WorkerState.DRAINING, progress=Progress(step="draining"), coming=coming)
        else:
            self._loads(order, "starting")
        self._work = asyncio.create_task(self._carry_out(order, former, kept_out))
        return self.now

    async def release(self, *, drain_s: float) -> Released:
        self._check()
        self.told.append("release")
        await self.stop()
        self.empties()
        return Released(proved=True)

    async def drain(self) -> Status:
        self._check()
        self.becomes(WorkerState.DRAINING, reason="An operator has asked for it.")
        return self.now

    async def admit(self) -> Status:
        self._check()
        self.becomes(WorkerState.READY, reason="")
        return self.now

    async def put_adapter(self, adapter: Adapter) -> Status:
        self._check()
        self.told.append(adapter)
        if self.refuses_adapters is not None:
            raise self.refuses_adapters
        self.engine.serves = {**self.engine.serves, adapter.name: 2_048}
        others = tuple(each for each in self.now.adapters if each.name != adapter.name)
        self.becomes(adapters=(*others, adapter))
        return self.now

    async def drop_adapter(self, name: str) -> Status:
        self._check()
        self.told.append(f"drop {name}")
        if all(each.name != name for each in self.now.adapters):
            raise UnknownAdapter
        self.engine.serves = {each: length for each, length in self.engine.serves.items() if each != name}
        self.becomes(adapters=tuple(each for each in self.now.adapters if each.name != name))
        return self.now

    async def logs(self, lines: int, *, follow: bool = False) -> AsyncIterator[bytes]:
        self._check()
        for line in TAIL[-lines:]:
            yield f"{line}\n".encode()

    async def aclose(self) -> None:
        self.told.append("closed")

    # --- how it carries out an order ------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        return self._work is not None and not self._work.done()

    def _check(self) -> None:
        if self.away is not None:
            raise self.away

    def _loads(self, order: Order, step: str) -> None:
        names = order.names or (order.model.rpartition("/")[2],)
        self.engine.die()
        self.becomes(
            WorkerState.LOADING,
            order=order,
            names=names,
            engine_url=None,
            progress=Progress(step=step),
            adapters=(),
            coming=(),
        )

    async def _carry_out(self, order: Order, former: Order | None, kept_out: bool) -> None:
        while self.engine.running:
            await asyncio.sleep(0)
        if former is not None:
            self._loads(order, "starting")
        await self.gate.wait()
        await asyncio.sleep(0)
        if order.model not in self.broken:
            self.serves(order)
            self.becomes(failure=None)
            return
        failure = Failure(order=order, reason="The engine ended: exit code 1.", tail=TAIL)
        self.becomes(failure=failure)
        if former is None:
            self.becomes(WorkerState.FAILED, reason=failure.reason, engine_url=None)
            return
        self._loads(former, "returning")
        await asyncio.sleep(0)
        self.serves(former)
        if kept_out:
            await self.drain()


Connected = Callable[[str], ScriptedWorker]


def refused(text: str = "out of memory") -> LoadFailed:
    return LoadFailed(text)
