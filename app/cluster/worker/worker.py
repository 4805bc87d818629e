"""A worker in this process: owns one engine at a time, and carries out what it is told.

    async with LocalWorker(post, settings.engine, state_dir) as worker:
        await worker.load(Order(model="..."), drain_s=120)

Leaving the block ends the engine, and returns when nothing of it is left.

One task does it all, from order to order (`_run`). What is asked is put into an inbox, and whatever the task is doing
makes way for it: a load that is given up, a pause before the next try, the watch over an engine that is well.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential

from app.clock import Clock
from app.cluster.control import Adapter, Failure, Order, Progress, Released, Status, WorkerState
from app.cluster.gpus.proof import LIMIT_S
from app.cluster.launchers.losses import EngineDidNotStart, EngineLost
from app.cluster.launchers.plan import HOST, Build, Launch, Place, launch, missing, url_of
from app.cluster.launchers.ports import Ports
from app.cluster.worker.board import Board
from app.cluster.worker.grip import gripped, name_of
from app.cluster.worker.inbox import Change, Inbox
from app.cluster.worker.life import AFTERMATH_S, Life, Pace
from app.cluster.worker.logs import said
from app.cluster.worker.speech import part_of
from app.errors import LoadFailed, LoadInProgress, NotOffered, NotReleased, UnknownAdapter, WorkerUnreachable
from app.settings import Engine
from app.version import VERSION

TRIES = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LONG_LIFE_S = 60.0
"""An engine that was ready for so long died of something new: its deaths are counted from one again."""

LOOKED_LATELY = 5
"""Heartbeats. Who has not looked for so long does not count on this worker either."""

TAIL_LINES, TAIL_CHARS = 20, 500
"""Of what an engine said last, in a status that is sent again and again."""

STOPPING_S = 2.0
"""That a worker which ends waits to see its memory back."""

UP = (WorkerState.READY, WorkerState.DRAINING)

OnProgress = Callable[[str, str], None]
"""A worker's name, and a line that its engine said, or that is said about it."""


@dataclass(frozen=True)
class Post:
    """Where a worker stands."""

    name: str
    host: str = HOST
    """The address that its engine listens on."""
    public_host: str = ""
    """The name or address by which others reach it; empty: the same."""
    gpus: tuple[str, ...] | None = None
    """As in GPUS."""
    on_cpu: bool = False
    threads: int = 1
    exclusive: bool = False
    """Nobody else may stand under its name in the same state folder."""


@dataclass(frozen=True)
class Served:
    """What a failed order goes back to."""

    order: Order
    adapters: tuple[Adapter, ...]


class LocalWorker:
    def __init__(
        self,
        post: Post,
        engine: Engine,
        state_dir: Path,
        *,
        on_progress: OnProgress = lambda name, line: None,
        heartbeat_s: float = 2.0,
        build: Build | None = None,
        pace: Pace | None = None,
        first_pause_s: float = FIRST_PAUSE_S,
        clock: Clock = time.monotonic,
    ) -> None:
        self._post = post
        self._engine = engine
        self._log = state_dir / "logs" / f"{post.name}.log"
        self._holds = (name_of(post.name, state_dir),) if post.exclusive else ()
        self._on_progress = on_progress
        self._heartbeat_s = heartbeat_s
        self._build = build
        self._pace = pace or Pace(start_s=engine.start_timeout_s)
        self._pauses = wait_exponential(multiplier=first_pause_s, max=LONGEST_PAUSE_S)
        self._clock = clock
        self._inbox = Inbox()
        self._life: Life | None = None
        self._serving = Order(model="")
        self._was_ready = False
        """With what it serves now."""
        self._kept_out = False
        """By `drain`: it comes up again as it was."""
        self._stopping = False
        self._lookers = 0
        self._looked_at = -1e9
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
        if self._build is None and (lacking := missing(self._engine)):
            raise EngineDidNotStart(lacking, [])
        async with AsyncExitStack() as stack:
            self._grip = await stack.enter_async_context(gripped(self._post.gpus, self._holds, self._tell))
            self._proof = self._grip.proof()
            self._board.change(gpus=self._grip.shown)
            self._ports = Ports(self._post.host, self._engine.port_start)
            stack.callback(self._ports.close)
            self._port = self._next_port()
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._task = tasks.create_task(self._run())
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
        self._lookers += 1
        try:
            return await self.news(after, wait_s)
        finally:
            self._lookers -= 1
            self._looked_at = self._clock()

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
            self._kept_out = False
            self._serving = order
            self._board.change(order=order, state=WorkerState.READY, reason="", failure=None)
            return self.now
        self._kept_out = False
        self._inbox.put(Change(order, self._clock() + drain_s))
        if self.now.state in UP:
            self._make_way(f"It makes way for {order.model}.", self._names(order))
        else:
            self._is_about_to_serve(order, Progress(step="starting"), reason="")
        return self.now

    async def release(self, *, drain_s: float) -> Released:
        self._check_alive()
        return await self._released(drain_s)

    async def stop(self, *, drain_s: float) -> None:
        """For good: the last word is said, and the block only remains to be left."""
        if not self._stopping:
            self._stopping = True
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
        if life is self._life:
            others = tuple(each for each in self.now.adapters if each.name != adapter.name)
            self._board.change(adapters=(*others, adapter))
        return self.now

    async def drop_adapter(self, name: str) -> Status:
        life = self._life_with_adapters()
        if all(each.name != name for each in self.now.adapters):
            raise UnknownAdapter
        await life.contact.drop_adapter(name)
        if life is self._life:
            self._board.change(adapters=tuple(each for each in self.now.adapters if each.name != name))
        return self.now

    def logs(self, lines: int, *, follow: bool = False) -> AsyncIterator[bytes]:
        return said(self._log, lines, follow=follow, ended=lambda: self.now.state is WorkerState.STOPPED)

    async def aclose(self) -> None:
        """There is nothing between us to give back."""

    # --- what stands behind that ---------------------------------------------------------------------------------

    async def _released(self, drain_s: float) -> Released:
        change = self._inbox.open
        if change is None or change.order is not None:
            change = Change(None, self._clock() + drain_s)
            self._inbox.put(change)
            if self.now.state in UP:
                self._make_way("It gives its GPUs back.")
        return await asyncio.shield(change.released)

    def _check_alive(self) -> None:
        if self._stopping:
            raise WorkerUnreachable("The worker has stopped.")

    def _check(self, order: Order) -> None:
        """What cannot be right is refused while the engine still serves what it did."""
        if fault := _fault(order):
            raise LoadFailed(f"{self.name} cannot load {order.model!r}: {fault}.")

    def _serves(self, order: Order) -> bool:
        served = self.now.order
        if served is None or self.now.state not in UP:
            return False
        return (self._meant(served), self._names(served)) == (self._meant(order), self._names(order))

    def _meant(self, order: Order) -> Engine:
        """The settings of the engine that this order asks for."""
        args = self._engine.args if order.args is None else order.args
        return replace(self._engine, model=order.model, args=args, replicas=1, gpus=self._post.gpus)

    def _names(self, order: Order) -> tuple[str, ...]:
        return order.names or (self._meant(order).served_name,)

    def _keep_out(self, out: bool) -> Status:
        self._check_alive()
        if self._inbox.open is not None:
            raise LoadInProgress
        self._kept_out = out and self.now.order is not None
        if self.now.state in UP:
            self._board.change(
                state=WorkerState.DRAINING if out else WorkerState.READY,
                reason="An operator has asked for it." if out else "",
            )
        return self.now

    def _life_with_adapters(self) -> Life:
        if self._engine.type == "transformers":
            raise NotOffered("The Transformers engine takes no adapters; vLLM does.")
        if self._inbox.open is not None:
            raise LoadInProgress
        if self._life is None or self.now.state not in UP:
            raise NotOffered("No engine is ready here that could take an adapter.")
        return self._life

    # --- the life of a worker ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """From order to order. Between them nothing runs."""
        served: Served | None = None
        try:
            while True:
                change = await self._inbox.take()
                if change.order is None:
                    served = None
                    await self._give_back(change)
                else:
                    served = await self._carry_out(change.order, served)
        finally:
            if self._inbox.open is not None:
                self._inbox.open.released.set_exception(WorkerUnreachable("The worker has stopped."))
                self._inbox.open.released.exception()  # perhaps nobody waits for it
            self._board.change(state=WorkerState.STOPPED, progress=None, reason="", engine_url=None)

    async def _give_back(self, change: Change) -> None:
        try:
            released = await self._proof.released(limit_s=STOPPING_S if self._stopping else LIMIT_S)
        except NotReleased as error:
            self._idle(WorkerState.FAILED, error.message)
            change.released.set_exception(error)
            change.released.exception()  # perhaps nobody waits for it
        else:
            self._idle(WorkerState.EMPTY, "")
            change.released.set_result(released)

    def _idle(self, state: WorkerState, reason: str) -> None:
        self._inbox.settle()
        self._board.change(
            state=state,
            order=None,
            names=(),
            coming=(),
            adapters=(),
            progress=None,
            reason=reason,
            engine_url=None,
        )

    async def _carry_out(self, order: Order, served: Served | None) -> Served | None:
        """What was served when something else was asked."""
        same_model = served is not None and served.order.model == order.model
        adapters = served.adapters if served and same_model else ()
        try:
            return await self._serve(Served(order, adapters), "starting")
        except EngineLost as lost:
            self._board.change(failure=_failure(self._serving, lost))
            self._tell(str(lost))
            if served is None or self._was_ready or self._inbox.holds_something:
                self._failed(str(lost))
                return None
        try:
            return await self._serve(served, "returning")
        except EngineLost as lost:
            self._failed(f"After a load that failed: {lost}")
        return None

    def _failed(self, reason: str) -> None:
        """Nobody tries any more."""
        if not self._inbox.holds_something:
            self._inbox.settle()
        self._board.change(state=WorkerState.FAILED, reason=reason, progress=None, engine_url=None, adapters=())

    async def _serve(self, served: Served, step: str) -> Served:
        """Until something else is asked. It is started again when it dies, if it was ready once."""
        self._serving, self._was_ready = served.order, False
        self._board.change(adapters=served.adapters)
        lives = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, EngineLost) and self._was_ready),
            stop=stop_after_attempt(TRIES),
            wait=self._pauses,
            sleep=self._pause,
            before_sleep=self._died,
            reraise=True,
        )
        while not await lives(self._live, step):
            step = "starting"
        return Served(self._serving, self.now.adapters)

    async def _live(self, step: str) -> bool:
        """One life of its engine. Ends because something else is asked: true; or after a long time: false."""
        async with self._inbox.making_way():
            await self._see_memory_back()
        if self._inbox.holds_something:
            return True
        order, self._proof = self._serving, self._grip.proof()
        reason = self.now.reason if self._inbox.open is None else ""  # it says how the last one died
        self._is_about_to_serve(order, Progress(step=step), starts=self.now.starts + 1, reason=reason)
        self._port = self._port if self._ports.still_free(self._port) else self._next_port()
        ready_at = None
        try:
            async with self._life_of(order) as life:
                async with self._inbox.making_way():
                    await self._bring_up(life, order)
                    ready_at = self._clock()
                    await life.watch()
                await self._let_go(life)
        except EngineLost as lost:
            if ready_at is None or self._clock() - ready_at < LONG_LIFE_S:
                raise
            self._board.change(state=WorkerState.LOADING, reason=str(lost))
            return False
        finally:
            self._life = None
        return True

    async def _see_memory_back(self) -> None:
        """What the last engine had. An engine that finds too little says so itself."""
        try:
            await self._proof.released()
        except NotReleased as error:
            self._tell(error.message)

    def _life_of(self, order: Order) -> Life:
        launch = self._launch(order)
        headless = "--headless" in self._meant(order).args
        self._board.change(engine_url=None if headless else url_of(self._public_host, launch.port))
        held = self._grip.descriptors
        return Life(launch, self._log, self._heard, self._pace, self._clock, headless=headless, held=held)

    async def _bring_up(self, life: Life, order: Order) -> None:
        await life.until_ready()
        self._step("trying")
        names = await life.try_out(self._names(order), any_name=self._engine.type == "command")
        for adapter in self.now.adapters:
            await self._put_back(life, adapter)
        self._life = life
        self._was_ready = True
        if not self._inbox.holds_something:
            carried_out = self._inbox.open is not None and self._inbox.open.order == order
            self._inbox.settle()
            self._board.change(
                state=WorkerState.DRAINING if self._kept_out else WorkerState.READY,
                names=names,
                progress=None,
                reason="",
                failure=None if carried_out else self.now.failure,
            )

    async def _put_back(self, life: Life, adapter: Adapter) -> None:
        try:
            await life.contact.put_adapter(adapter)
        except (LoadFailed, NotOffered) as error:
            if not await life.is_gone_within(AFTERMATH_S):  # else it is not the adapter's fault
                self._tell(error.message)
                self._board.change(adapters=tuple(each for each in self.now.adapters if each != adapter))

    async def _let_go(self, life: Life) -> None:
        """Whoever sends here must have seen that it is draining; then what runs may finish."""
        if life is self._life:
            looked = self._lookers or self._clock() - self._looked_at < LOOKED_LATELY * self._heartbeat_s
            seen_at = self._clock() + (self._heartbeat_s if looked else 0.0)
            while self._clock() < min(seen_at, self._drained_by()) and not await life.is_gone_within(0.1):
                pass
            await life.until_idle(lambda: self._clock() >= self._drained_by())
        self._step("stopping")

    def _drained_by(self) -> float:
        return self._inbox.open.drained_by if self._inbox.open else self._clock()

    async def _pause(self, seconds: float) -> None:
        async with self._inbox.making_way():
            await asyncio.sleep(seconds)

    # --- what becomes known of it --------------------------------------------------------------------------------

    def _make_way(self, reason: str, coming: tuple[str, ...] = ()) -> None:
        progress = Progress(step="draining")
        self._board.change(state=WorkerState.DRAINING, progress=progress, reason=reason, coming=coming)

    def _is_about_to_serve(self, order: Order, progress: Progress, **more: Any) -> None:
        more |= {"order": order, "names": self._names(order), "coming": ()}
        self._board.change(state=WorkerState.LOADING, progress=progress, **more)

    def _died(self, state: RetryCallState) -> None:
        lost = state.outcome and state.outcome.exception()
        pause_s = state.next_action.sleep if state.next_action else 0.0
        sentence = f"{lost} It is started again in {pause_s:.1f} s."
        self._tell(sentence)
        self._board.change(state=WorkerState.LOADING, reason=sentence, progress=None, engine_url=None)

    def _step(self, step: str) -> None:
        self._board.change(progress=Progress(step=step))

    def _tell(self, line: str) -> None:
        self._on_progress(self.name, line)

    def _heard(self, line: str) -> None:
        self._tell(line)
        progress = self.now.progress
        if self.now.state is not WorkerState.LOADING or progress is None:
            return
        step = "loading" if progress.step == "starting" else progress.step
        told = part_of(line)
        self._board.change(
            progress=Progress(step=step, part=progress.part if told is None else told, said=line[:TAIL_CHARS])
        )

    # --- where it stands -----------------------------------------------------------------------------------------

    @property
    def _public_host(self) -> str:
        return self._post.public_host or self._post.host

    def _launch(self, order: Order) -> Launch:
        post = self._post
        place = Place(self._port, post.gpus, post.on_cpu, post.threads, post.host, self._names(order))
        planned = launch(self.name, self._meant(order), place, self._build)
        return replace(planned, env={**planned.env, **self._grip.env})

    def _next_port(self) -> int:
        before = len(self._ports.skipped)
        port = next(self._ports)
        for taken in self._ports.skipped[before:]:
            self._tell(f"Port {taken} is taken; trying the next.")
        return port


def _fault(order: Order) -> str | None:
    """What can be seen of it without starting anything, as the end of a sentence."""
    words = (order.model, *order.names, *(order.args or ()))
    if not all(_is_a_word(word) for word in words) or not all((order.model, *order.names)):
        return "its words must be text without NUL, and its names must not be empty"
    if order.model.startswith(("/", "./", "../", "~")) and not os.path.exists(os.path.expanduser(order.model)):
        return "there is no such path on its machine"
    return None


def _is_a_word(text: str) -> bool:
    """Of a command line."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _failure(order: Order, lost: EngineLost) -> Failure:
    tail = tuple(line[:TAIL_CHARS] for line in lost.tail[-TAIL_LINES:])
    return Failure(order=order, reason=str(lost), tail=tail)
