"""The life of a worker: one task that carries out one order after the other, and starts again what dies.

What is asked is put into an inbox, and whatever the task is doing makes way for it: a load that is given up, a pause
before the next try, the watch over an engine that is well.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential

from app.clock import Clock
from app.cluster.control import Adapter, Failure, Order, WorkerState
from app.cluster.gpus.proof import LIMIT_S
from app.cluster.launchers.losses import EngineLost
from app.cluster.worker.board import SAID_CHARS, Board
from app.cluster.worker.grip import NoGrip
from app.cluster.worker.inbox import Change, Inbox
from app.cluster.worker.life import AFTERMATH_S, Life, Pace
from app.cluster.worker.site import Site
from app.cluster.worker.terms import Terms
from app.errors import LoadFailed, NotOffered, NotReleased, WorkerUnreachable

TRIES = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LONG_LIFE_S = 60.0
"""An engine that was ready for so long died of something new: its deaths are counted from one again."""

TAIL_LINES = 20
"""Of what an engine said last, in a status that is sent again and again."""

STOPPING_S = 2.0
"""That a worker which ends waits to see its memory back."""

LOOKED_LATELY = 5
"""Heartbeats. Who has not looked for so long does not count on this worker either."""


@dataclass(frozen=True)
class Served:
    """What a failed order goes back to."""

    order: Order
    adapters: tuple[Adapter, ...]
    kept_out: bool = False
    """By an operator."""


class Audience:
    """Those who look at a worker and send requests to its engine."""

    def __init__(self, clock: Clock, heartbeat_s: float) -> None:
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._looking = 0
        self._looked_at = -1e9

    @contextmanager
    def looking(self) -> Iterator[None]:
        self._looking += 1
        try:
            yield
        finally:
            self._looking -= 1
            self._looked_at = self._clock()

    @property
    def notices_within_s(self) -> float:
        """How long it may take until all of them have seen a change."""
        lately = self._looking or self._clock() - self._looked_at < LOOKED_LATELY * self._heartbeat_s
        return self._heartbeat_s if lately else 0.0


class Supervisor:
    def __init__(
        self,
        site: Site,
        terms: Terms,
        log: Path,
        inbox: Inbox,
        board: Board,
        audience: Audience,
        tell: Callable[[str], None],
        pace: Pace,
        first_pause_s: float,
        clock: Clock,
    ) -> None:
        self._site = site
        self._terms = terms
        self._log = log
        self._inbox = inbox
        self._board = board
        self._audience = audience
        self._tell = tell
        self._pace = pace
        self._pauses = wait_exponential(multiplier=first_pause_s, max=LONGEST_PAUSE_S)
        self._clock = clock
        self._was_ready = False
        """With what it serves now."""
        self.serving = Order(model="")
        self.life: Life | None = None
        """Of an engine that is ready."""
        self.kept_out = False
        """By an operator: it comes up again as it was."""
        self.stopping = False

    async def run(self) -> None:
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
            self._board.stopped()

    async def _give_back(self, change: Change) -> None:
        try:
            released = await self._site.released(STOPPING_S if self.stopping else LIMIT_S)
        except NotReleased as error:
            self._has_nothing(WorkerState.FAILED, error.message)
            change.released.set_exception(error)
            change.released.exception()  # perhaps nobody waits for it
        else:
            self._has_nothing(WorkerState.EMPTY, "")
            change.released.set_result(released)

    def _has_nothing(self, state: WorkerState, reason: str) -> None:
        self._inbox.settle()
        self._board.has_nothing(state, reason)

    async def _carry_out(self, order: Order, served: Served | None) -> Served | None:
        """What was served when something else was asked."""
        same_model = served is not None and served.order.model == order.model
        adapters = served.adapters if served and same_model else ()
        try:
            return await self._serve(Served(order, adapters), "starting")
        except EngineLost as lost:
            self._board.change(failure=_failure(self.serving, lost))
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
        self._board.failed(reason)

    async def _serve(self, served: Served, step: str) -> Served:
        """Until something else is asked. It is started again when it dies, if it was ready once."""
        self.serving, self.kept_out, self._was_ready = served.order, served.kept_out, False
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
        return Served(self.serving, self._board.now.adapters, self.kept_out)

    async def _pause(self, seconds: float) -> None:
        async with self._inbox.making_way():
            await asyncio.sleep(seconds)

    def _died(self, state: RetryCallState) -> None:
        lost = state.outcome and state.outcome.exception()
        pause_s = state.next_action.sleep if state.next_action else 0.0
        sentence = f"{lost} It is started again in {pause_s:.1f} s."
        self._tell(sentence)
        self._board.change(state=WorkerState.LOADING, reason=sentence, progress=None, engine_url=None)

    # --- one life of its engine ----------------------------------------------------------------------------------

    async def _live(self, step: str) -> bool:
        """Ends because something else is asked: true; or after a long time: false."""
        async with self._inbox.making_way():
            await self._see_memory_back()
        if self._inbox.holds_something:
            return True
        order, now = self.serving, self._board.now
        reason = now.reason if self._inbox.open is None else ""  # it says how the last one died
        self._board.begins(order, self._terms.names(order), step, starts=now.starts + 1, reason=reason)
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
            self.life = None
        return True

    async def _see_memory_back(self) -> None:
        """What the last engine had. An engine that finds too little says so itself."""
        try:
            await self._site.clear()
            await self._site.released(LIMIT_S)
        except (NoGrip, NotReleased) as error:
            self._tell(str(error))

    def _life_of(self, order: Order) -> Life:
        launch = self._site.launch(order)
        headless = self._terms.headless(order)
        self._board.change(engine_url=None if headless else self._site.url_of(launch))
        held = self._site.descriptors
        return Life(launch, self._log, self._heard, self._pace, self._clock, headless=headless, held=held)

    def _heard(self, line: str) -> None:
        self._tell(line)
        self._board.heard(line)

    async def _bring_up(self, life: Life, order: Order) -> None:
        await life.until_ready()
        self._board.step("trying")
        names = await life.try_out(self._terms.names(order), any_name=self._terms.takes_any_name)
        for adapter in self._board.now.adapters:
            await self._put_back(life, adapter)
        self.life = life
        self._was_ready = True
        if not self._inbox.holds_something:
            carried_out = self._inbox.open is not None and self._inbox.open.order == order
            self._inbox.settle()
            failure = None if carried_out else self._board.now.failure
            self._board.serves(names, kept_out=self.kept_out, failure=failure)

    async def _put_back(self, life: Life, adapter: Adapter) -> None:
        try:
            await life.contact.put_adapter(adapter)
        except (LoadFailed, NotOffered) as error:
            if not await life.is_gone_within(AFTERMATH_S):  # else it is not the adapter's fault
                self._tell(error.message)
                self._board.change(adapters=tuple(each for each in self._board.now.adapters if each != adapter))

    async def _let_go(self, life: Life) -> None:
        """Whoever sends here must have seen that it is draining; then what runs may finish."""
        if life is self.life:
            seen_at = self._clock() + self._audience.notices_within_s
            while self._clock() < min(seen_at, self._drained_by()) and not await life.is_gone_within(0.1):
                pass
            await life.until_idle(lambda: self._clock() >= self._drained_by())
        self._board.step("stopping")

    def _drained_by(self) -> float:
        return self._inbox.open.drained_by if self._inbox.open else self._clock()


def _failure(order: Order, lost: EngineLost) -> Failure:
    tail = tuple(line[:SAID_CHARS] for line in lost.tail[-TAIL_LINES:])
    return Failure(order=order, reason=str(lost), tail=tail)
