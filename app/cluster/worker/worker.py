"""A worker in this process: owns one engine at a time, and can be told what to serve.

    async with LocalWorker(post, settings.engine, state_dir) as worker:
        await worker.load(Order(model="..."), drain_s=120)

Leaving the block ends the engine, and returns when nothing of it is left. Here is what can be asked of it; what is
asked for is done by one task, in `supervisor`.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from app.clock import Clock
from app.cluster.control import Adapter, Order, Released, Status, WorkerState
from app.cluster.launchers.losses import EngineDidNotStart
from app.cluster.launchers.plan import NOT_TRACED, Build, missing
from app.cluster.worker.board import Board
from app.cluster.worker.inbox import Change, Inbox
from app.cluster.worker.life import Life, Pace
from app.cluster.worker.logs import said
from app.cluster.worker.site import OnProgress, Post, occupied
from app.cluster.worker.supervisor import FIRST_PAUSE_S, Audience, Supervisor
from app.cluster.worker.terms import Terms, fault
from app.errors import LoadFailed, LoadInProgress, NotOffered, NotReleased, UnknownAdapter, WorkerUnreachable
from app.settings import Engine, Telemetry
from app.version import VERSION


class LocalWorker:
    def __init__(
        self,
        post: Post,
        engine: Engine,
        state_dir: Path,
        *,
        on_progress: OnProgress = lambda name, line: None,
        heartbeat_s: float = 2.0,
        telemetry: Telemetry = NOT_TRACED,
        build: Build | None = None,
        pace: Pace | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._post = post
        self._terms = Terms(engine, post.gpus, telemetry)
        self._state_dir = state_dir
        self._on_progress = on_progress
        self._build = build
        self._pace = pace or Pace(start_s=engine.start_timeout_s)
        self._first_pause_s = first_pause_s
        self._clock = clock
        self._inbox = Inbox()
        self._audience = Audience(clock, heartbeat_s)
        self._board = Board(
            Status(
                name=post.name,
                life=secrets.token_hex(8),
                version=0,
                state=WorkerState.EMPTY,
                engine=engine.type,
                gpus=post.gpus or (),
                software=VERSION,
            )
        )

    async def __aenter__(self) -> Self:
        engine = self._terms.engine
        if self._build is None and (lacking := missing(engine)):
            raise EngineDidNotStart(lacking, [])
        async with AsyncExitStack() as stack:
            held = occupied(self._post, self._terms, self._state_dir, self._build, self._tell)
            site = await stack.enter_async_context(held)
            self._board.change(gpus=site.gpus)
            self._supervisor = Supervisor(
                site,
                self._terms,
                self._log,
                self._inbox,
                self._board,
                self._audience,
                self._tell,
                self._pace,
                self._first_pause_s,
                self._clock,
            )
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._task = tasks.create_task(self._supervisor.run())
            stack.push_async_callback(self._end)
            self._leave = stack.pop_all().__aexit__
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._leave(kind, error, tb)

    async def _end(self) -> None:
        """Cancelled once, the engine is stopped; cancelled twice, it is killed. So it is with us."""
        self._task.cancel()
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    # --- what it can be told (`control.Worker`) ------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._post.name

    @property
    def now(self) -> Status:
        return self._board.now

    async def status(self, after: int = -1, wait_s: float = 0.0) -> Status:
        with self._audience.looking():
            return await self.news(after, wait_s)

    async def news(self, after: int, wait_s: float) -> Status:
        """For those who send no requests here: no drain waits until they have seen it."""
        return await self._board.look(after, wait_s)

    async def load(self, order: Order, *, drain_s: float, force: bool = False) -> Status:
        self._check_alive()
        if (change := self._inbox.open) is not None:
            if change.order == order and not force:  # told twice
                return self.now
            raise LoadInProgress
        self._check(order)
        if not force and self._serves(order):
            self._supervisor.serving, self._supervisor.kept_out = order, False
            self._board.change(order=order, state=WorkerState.READY, reason="", failure=None)
            return self.now
        self._inbox.put(Change(order, self._clock() + drain_s))
        names = self._terms.names(order)
        if self._board.is_up:
            self._board.makes_way(f"It makes way for {order.model}.", names)
        else:
            self._board.begins(order, names, "starting", reason="")
        return self.now

    async def release(self, *, drain_s: float) -> Released:
        self._check_alive()
        return await self._released(drain_s)

    async def stop(self, *, drain_s: float) -> None:
        """For good: the last word is said, and the block only remains to be left."""
        if not self._supervisor.stopping:
            self._supervisor.stopping = True
            with suppress(NotReleased):  # it has been said
                await self._released(drain_s)
            self._board.change(state=WorkerState.STOPPED, reason="", progress=None)

    async def drain(self) -> Status:
        return self._keep_out(True)

    async def admit(self) -> Status:
        return self._keep_out(False)

    async def put_adapter(self, adapter: Adapter) -> Status:
        life = self._life_with_adapters()
        if adapter in self.now.adapters:
            return self.now
        if adapter.name in self.now.names:
            raise LoadFailed(f"{adapter.name} is the name of the model itself.", param="name")
        replaced = any(each.name == adapter.name for each in self.now.adapters)
        await life.contact.put_adapter(adapter, instead=replaced)
        if life is self._supervisor.life:
            others = tuple(each for each in self.now.adapters if each.name != adapter.name)
            self._board.change(adapters=(*others, adapter))
        return self.now

    async def drop_adapter(self, name: str) -> Status:
        life = self._life_with_adapters()
        if all(each.name != name for each in self.now.adapters):
            raise UnknownAdapter
        await life.contact.drop_adapter(name)
        if life is self._supervisor.life:
            self._board.change(adapters=tuple(each for each in self.now.adapters if each.name != name))
        return self.now

    def logs(self, lines: int, *, follow: bool = False) -> AsyncIterator[bytes]:
        return said(self._log, lines, follow=follow, ended=lambda: self.now.state is WorkerState.STOPPED)

    async def aclose(self) -> None:
        """There is nothing between us to give back."""

    # --- what stands behind that ---------------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        return self._post.log_in(self._state_dir)

    def _tell(self, line: str) -> None:
        self._on_progress(self.name, line)

    def _check_alive(self) -> None:
        if self._supervisor.stopping:
            raise WorkerUnreachable("The worker has stopped.")

    def _check(self, order: Order) -> None:
        """What cannot be right is refused while the engine still serves what it did."""
        if wrong := fault(order):
            raise LoadFailed(f"{self.name} cannot load {order.model!r}: {wrong}.")

    def _serves(self, order: Order) -> bool:
        served = self.now.order
        return served is not None and self._board.is_up and self._terms.alike(served, order)

    async def _released(self, drain_s: float) -> Released:
        change = self._inbox.open
        if change is None or change.order is not None:
            change = Change(None, self._clock() + drain_s)
            self._inbox.put(change)
            if self._board.is_up:
                self._board.makes_way("It gives its GPUs back.")
        return await asyncio.shield(change.released)

    def _keep_out(self, out: bool) -> Status:
        self._check_alive()
        if self._inbox.open is not None:
            raise LoadInProgress
        self._supervisor.kept_out = out and self.now.order is not None
        if self._board.is_up:
            self._board.change(
                state=WorkerState.DRAINING if out else WorkerState.READY,
                reason="An operator has asked for it." if out else "",
            )
        return self.now

    def _life_with_adapters(self) -> Life:
        if self._terms.engine.type == "transformers":
            raise NotOffered("The Transformers engine takes no adapters; vLLM does.")
        if self._inbox.open is not None:
            raise LoadInProgress
        if self._supervisor.life is None or not self._board.is_up:
            raise NotOffered("No engine is ready here that could take an adapter.")
        return self._supervisor.life
