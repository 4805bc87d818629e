"""Another model on several workers, as one transaction (docs/adr/0018): round by round, all of them or none.

Each worker is a transaction of its own: it returns by itself to what it served. So whatever becomes of the gateway that
gives the orders, every worker ends with one model or the other.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass

from app.clock import Clock
from app.cluster.control import Order, Status, WorkerState
from app.cluster.member import Member, names_of
from app.cluster.members import Members
from app.cluster.plan import Rounds
from app.cluster.progress import Account, Feed, Outcome, Step
from app.errors import ClusterError, LoadFailed, LoadInProgress

log = logging.getLogger("gllm")

SLACK_S = 60.0
"""Beyond the time for draining and for loading: an engine is stopped, and tried."""
TAIL_SHOWN = 12


@dataclass(frozen=True)
class Wish:
    """What is to be served, where, and how gently."""

    order: Order
    workers: tuple[str, ...] | None = None
    """By name; `None`: all."""
    count: int | None = None
    """So many of them, whichever costs least."""
    floor: int | None = None
    """Replicas that go on serving at any time."""
    drain_s: float | None = None
    force: bool = False
    """Also where it is served already."""

    @property
    def everywhere(self) -> bool:
        return self.workers is None and self.count is None


@dataclass(frozen=True)
class Limits:
    drain_s: float
    """Unless a wish says otherwise."""
    load_s: float


@dataclass(frozen=True)
class Changed:
    """A worker that has taken our order, and what there was before."""

    member: Member
    since: Status
    before: Status


class Swap:
    def __init__(self, wish: Wish, rounds: Rounds, members: Members, limits: Limits, clock: Clock) -> None:
        self.id = wish.order.id
        self.wish = wish
        self.rounds = rounds
        self.outcome = Outcome.RUNNING
        self.feed = Feed()
        self._members = members
        self._clock = clock
        self.began = clock()
        self._seconds: float | None = None
        self._drain_s = limits.drain_s if wish.drain_s is None else wish.drain_s
        self._limit_s = self._drain_s + limits.load_s + SLACK_S
        self._changed: list[Changed] = []
        self._failure: LoadFailed | None = None
        self._failed = ""
        self._block: asyncio.Timeout | None = None
        self._given_up: str | None = None
        self._gives_back = True
        for name in (name for each in rounds for name in each):
            self.feed.tell(Step(worker=name, step="waiting"))

    @property
    def running(self) -> bool:
        return not self.feed.closed

    @property
    def failure(self) -> LoadFailed | None:
        """Why it is not done, once it is over."""
        return self._failure

    def account(self) -> Account:
        failure = self._failure
        return Account(
            id=self.id,
            model=self.wish.order.model,
            names=names_of(self.wish.order),
            outcome=self.outcome,
            rounds=self.rounds,
            seconds=round(self._clock() - self.began if self._seconds is None else self._seconds, 3),
            workers=tuple(self.feed.steps.values()),
            worker=self._failed,
            reason="" if failure is None else failure.message,
            tail=() if failure is None else failure.tail,
        )

    def give_up(self, reason: str, *, gives_back: bool = True) -> None:
        """It is not wanted any more. `gives_back`: those that have changed get back what they served."""
        if self._given_up is None and self.outcome is Outcome.RUNNING:
            self._given_up, self._gives_back = reason, gives_back
            if self._block is not None:
                self._block.reschedule(0.0)

    async def run(self) -> None:
        """Returns when it is over, one way or the other. Those who follow are told of that by whoever runs it."""
        try:
            await self._forward()
            self.outcome = Outcome.DONE
        except ClusterError as error:
            await self._back(error)
        except Exception:
            log.exception("the change of models %s failed unforeseen", self.id)
            await self._back(LoadFailed("It failed for a reason that nobody foresaw: the gateway's log has it."))
        finally:
            self._seconds = self._clock() - self.began

    # --- forward --------------------------------------------------------------------------------------------------

    async def _forward(self) -> None:
        try:
            async with asyncio.timeout(None) as self._block:
                if self._given_up is not None:
                    raise TimeoutError
                for names in self.rounds:
                    await _together(self._change(name) for name in names)
        except TimeoutError:
            raise LoadFailed(self._given_up) from None
        finally:
            self._block = None

    async def _change(self, name: str) -> None:
        try:
            member = self._members.reached(name)
            assert member.status is not None
            before = member.status
            since = await self._give(member, self.wish.order, force=self.wish.force)
            if not self.wish.force and since.state is WorkerState.READY and _alike(since, self.wish.order):
                self._tell(member, "ready")
                return
            self._changed.append(Changed(member, since, before))
            await self._until_served(member, self.wish.order, since)
            self._tell(member, "ready")
        except ClusterError as error:
            self._failed = self._failed or name
            self.feed.tell(Step(worker=name, step="failed", said=error.message))
            raise

    async def _give(self, member: Member, order: Order, *, force: bool) -> Status:
        """An order that was said twice, because the first answer was lost, is in progress already: that is well."""
        try:
            return await member.worker.load(order, drain_s=self._drain_s, force=force)
        except LoadInProgress:
            status = await member.worker.status()
            if _is_about(status, order):
                return status
            raise LoadFailed(f"{member.name} is carrying out another order.") from None

    async def _until_served(self, member: Member, order: Order, since: Status) -> None:
        try:
            async with asyncio.timeout(self._limit_s):
                while not self._is_served(member, order, since):
                    await member.news()
        except TimeoutError:
            raise LoadFailed(f"{member.name} was not ready after {self._limit_s:g} s.") from None

    def _is_served(self, member: Member, order: Order, since: Status) -> bool:
        """Raises where it never will be."""
        status = member.status
        if status is None or not member.present:
            raise LoadFailed(f"{member.name} is {member.state} since it was told. {member.reason}".strip())
        if status.life != since.life:
            raise LoadFailed(f"{member.name} was started anew while it loaded.")
        if status.version < since.version:
            return False
        if status.state is WorkerState.READY and _is_about(status, order):
            return member.replica is None or member.answers
        if _is_kept_out(status) and _is_about(status, order):
            return True  # an operator was quick
        if status.failure is not None and _is(status.failure.order, order):
            raise LoadFailed(status.failure.reason, tail=status.failure.tail)
        if status.state is WorkerState.FAILED:
            raise LoadFailed(status.reason or f"{member.name} has failed.")
        if status.state is WorkerState.EMPTY:
            raise LoadFailed(f"{member.name} was told to give its GPUs back.")
        self._tell(member)
        return False

    # --- back -----------------------------------------------------------------------------------------------------

    async def _back(self, error: ClusterError) -> None:
        self._failure = error if isinstance(error, LoadFailed) else LoadFailed(error.message)
        ended = Outcome.FAILED if self._given_up is None else Outcome.CANCELLED
        self._members.expect(None)
        if self._gives_back:
            self.outcome = Outcome.RETURNING
            at_once = max(map(len, self.rounds), default=1)
            changed = sorted(self._changed, key=lambda each: each.member.ready)
            for start in range(0, len(changed), at_once):
                await _together(self._return(each) for each in changed[start : start + at_once])
        self.outcome = ended

    async def _return(self, changed: Changed) -> None:
        """What cannot be given back is said, and no reason to leave the others as they are."""
        member = changed.member
        try:
            async with asyncio.timeout(2 * self._limit_s):
                await self._give_back(changed)
        except (ClusterError, TimeoutError) as error:
            text = error.message if isinstance(error, ClusterError) else "It took too long."
            log.warning("worker %s could not be given back what it served: %s", member.name, text)
            self.feed.tell(Step(worker=member.name, step="left", said=text))
        else:
            self.feed.tell(Step(worker=member.name, step="returned"))

    async def _give_back(self, changed: Changed) -> None:
        member, former = changed.member, _served_in(changed.before)
        status = await self._settled(changed)
        if former is None:
            if status.state is not WorkerState.EMPTY:
                await member.worker.release(drain_s=self._drain_s)
            return
        if not _is_about(status, former) or not (status.state is WorkerState.READY or _is_kept_out(status)):
            since = await self._give(member, former, force=False)
            await self._until_served(member, former, since)
            for adapter in changed.before.adapters:
                await member.worker.put_adapter(adapter)
            if _is_kept_out(changed.before):
                await member.worker.drain()

    async def _settled(self, changed: Changed) -> Status:
        """It has failed and returned by itself; or it has loaded; or is made to give it up, but not before what runs
        has had its time: an engine that loads has nothing to lose."""
        member = changed.member
        while True:
            status = await member.worker.status()
            returning = status.failure is not None and _is(status.failure.order, self.wish.order)
            under_way = status.state in (WorkerState.DRAINING, WorkerState.LOADING) and not _is_kept_out(status)
            if status.life != changed.since.life or not under_way:
                return status
            if status.state is WorkerState.LOADING and not returning:
                await member.worker.release(drain_s=0.0)
                return await member.worker.status()
            await member.news()

    def _tell(self, member: Member, step: str = "") -> None:
        progress = member.status.progress if member.status is not None else None
        if progress is not None and not step:
            self.feed.tell(Step(worker=member.name, step=progress.step, part=progress.part, said=progress.said))
        elif step or member.state != "ready":
            self.feed.tell(Step(worker=member.name, step=step or member.state))


def explained(failure: LoadFailed) -> LoadFailed:
    """With the engine's last lines in its text."""
    said = "".join(f"\n  | {line}" for line in failure.tail[-TAIL_SHOWN:])
    return LoadFailed(failure.message + said, tail=failure.tail)


def _served_in(before: Status) -> Order | None:
    return None if before.state in (WorkerState.EMPTY, WorkerState.FAILED) else before.order


def _is(one: Order, other: Order) -> bool:
    return one.id == other.id if other.id else one == other


def _is_about(status: Status, order: Order) -> bool:
    return status.order is not None and _is(status.order, order)


def _is_kept_out(status: Status) -> bool:
    """By an operator: it drains, and makes way for nothing."""
    return status.state is WorkerState.DRAINING and status.progress is None


def _alike(status: Status, order: Order) -> bool:
    """It says that there is nothing to do for it."""
    return status.order is not None and status.order.model == order.model


async def _together(works: Iterable[Awaitable[None]]) -> None:
    """All at once. The first that fails ends the others, and is told."""
    failures: list[ClusterError] = []

    async def guarded(work: Awaitable[None]) -> None:
        try:
            await work
        except ClusterError as error:
            failures.append(error)
            raise

    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(guarded(work))
    except* ClusterError:
        pass
    if failures:
        raise failures[0]
