"""The workers that a gateway knows. It looks at each of them, again and again, and keeps the fleet as they say.

A look waits for news, so that they are here at once, and renews what a worker is counted on for: one that could not be
looked at for the time of a lease is lost. Nothing else is believed: to announce a worker is to say where to look.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from app.clock import Clock
from app.cluster.control import Order, Released, Status, Worker, WorkerState
from app.cluster.member import EVERYWHERE, HERE, Member, Standing
from app.cluster.seats import Seats
from app.errors import ClusterError, LoadInProgress, NameTaken, NotAccepted, UnknownWorker, WorkerUnreachable
from app.reliability.stores.redis import StoreUnavailable
from app.telemetry.base import Telemetry, WorkerChanged

log = logging.getLogger("gllm")

FIRST_LOOK_S = 3.0
"""Whoever announces a worker waits for the answer."""
PACE_S = 0.05
"""Between two looks at a worker that always has news."""
LONGEST_PAUSE_S = 60.0
"""Between two looks at a lost one."""
MISSES = 2
"""One may be our own doing: who has stood still for longer than a lease has seen nobody in it."""
KEPT_S = 3_600.0
"""A lost one is looked for so long."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}")
"""It stands in paths and in labels."""


class Addresses(Protocol):
    """What gateways that share a store tell each other."""

    async def share(self, alive: Sequence[str]) -> list[str]:
        """These are well; which ones does anybody know? Raises `StoreUnavailable`."""
        ...

    async def withdraw(self, address: str) -> None: ...


@dataclass(frozen=True)
class Pace:
    heartbeat_s: float
    """How long a look waits for news."""
    lease_s: float
    """How long a worker is counted on without one."""


async def _always() -> bool:
    return True


class Members:
    def __init__(
        self,
        seats: Seats,
        telemetry: Telemetry,
        clock: Clock,
        pace: Pace,
        connect: Callable[[str], Worker],
        shared: Addresses | None = None,
    ) -> None:
        self.connect = connect
        """Makes a worker of an address."""
        self.at_rest: Callable[[], Awaitable[bool]] = _always
        """Nobody gives orders to several workers now: one that comes back with nothing may be told what it served."""
        self._seats = seats
        self._telemetry = telemetry
        self._clock = clock
        self._pace = pace
        self._shared = shared
        self._by_address: dict[str, Member] = {}
        self._wish: Order | None = None
        self._tasks: asyncio.TaskGroup | None = None

    # --- who is there ---------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Member]:
        known = [each for each in self._by_address.values() if each.standing is not Standing.NEW]
        return iter(sorted(known, key=lambda each: each.name))

    @property
    def present(self) -> list[Member]:
        return [each for each in self if each.present]

    def find(self, name: str) -> Member:
        for each in self:
            if each.name == name:
                return each
        raise UnknownWorker

    def reached(self, name: str) -> Member:
        member = self.find(name)
        if not member.present:
            raise WorkerUnreachable(f"{name} is {member.state}. {member.reason}".strip())
        return member

    @property
    def current(self) -> Order | None:
        """What all workers were told last: remembered here, and by the workers themselves in their orders' ids."""
        known = [self._wish]
        for each in self:
            known += each.served, each.order
        orders = [order for order in known if order is not None and order.id.startswith(EVERYWHERE)]
        return max(orders, key=lambda order: order.id, default=None)

    def wish(self, order: Order | None) -> None:
        """What those shall serve that come with nothing."""
        self._wish = order

    def expect(self, order: Order | None, workers: int = 0) -> None:
        """So many are about to serve this: calls may wait for it."""
        self._seats.expect(order, workers)

    # --- coming and going -----------------------------------------------------------------------------------------

    def know(self, address: str, *, fixed: bool = True) -> None:
        """Look for it from now on, whether it is there yet or not. `fixed`: and never cease to."""
        if address not in self._by_address:
            self._begin(Member(self.connect(address), address, self._clock(), fixed=fixed))

    async def join(self, worker: Worker) -> Member:
        """One in this process."""
        return await self._meet(Member(worker, f"{HERE}{worker.name}", self._clock(), fixed=True))

    async def announce(self, address: str) -> Member:
        """Somebody says that a worker of ours is there. Nothing of it is believed before it has been looked at."""
        member = self._by_address.get(address)
        if member is None:
            return await self._meet(Member(self.connect(address), address, self._clock()))
        if member.standing is Standing.NEW:
            return await self._meet(member)
        member.woken.set()
        return member

    async def release(self, name: str, drain_s: float) -> Released:
        """On purpose: it is told nothing when it comes back."""
        member = self.reached(name)
        member.served, member.released = None, True
        return await member.worker.release(drain_s=drain_s)

    async def _meet(self, member: Member) -> Member:
        """The first look. It may turn out to be one that is known already."""
        try:
            status = await self._first_status(member)
            known = self._same(member, status)
        except BaseException:
            await self._close_unless_followed(member)
            raise
        if known is not None:
            await self._close_unless_followed(member)
            return known
        self._begin(member)
        await self._saw(member, status)
        return member

    async def _first_status(self, member: Member) -> Status:
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                status = await member.worker.status()
        except (WorkerUnreachable, TimeoutError):
            raise NotAccepted(f"No worker answers at {member.address}.", param="address") from None
        except ClusterError as error:
            raise NotAccepted(error.message, param="address", code="not_our_worker") from None
        return status

    def _same(self, member: Member, status: Status) -> Member | None:
        """Who has this name already: the same process, looked at elsewhere. A lost one's past is taken over."""
        if _NAME.fullmatch(status.name) is None:
            text = "A worker's name has 1 to 64 letters, digits and any of '._:@-', and begins with none of these."
            raise NotAccepted(text, param="address", code="not_our_worker")
        other = next((each for each in self if each is not member and each.name == status.name), None)
        if other is None:
            return None
        if not other.present:
            member.served, member.released = other.served, other.released
            self._forget(other, leaves=False)
            return None
        if other.status is not None and other.status.life == status.life:
            return other
        raise NameTaken(f"Another worker called {status.name} is known already, at {other.address}.", param="address")

    async def _close_unless_followed(self, member: Member) -> None:
        if self._by_address.get(member.address) is not member:
            await member.worker.aclose()

    def _begin(self, member: Member) -> None:
        if self._by_address.get(member.address) is not member:
            self._by_address[member.address] = member
            if self._tasks is not None:
                self._tasks.create_task(self._follow(member))

    def _forget(self, member: Member, *, leaves: bool = True) -> None:
        """It is looked at no more; the one who does notices, and closes."""
        del self._by_address[member.address]
        member.woken.set()
        if leaves:
            self._seats.leave(member, known=False)
            self._telemetry.note(WorkerChanged(member.name, "forgotten", ""))

    # --- looking --------------------------------------------------------------------------------------------------

    async def look_first(self) -> None:
        """At those that are known from the start: what they serve is known before anybody asks for it."""
        async with asyncio.TaskGroup() as looks:
            for member in list(self._by_address.values()):
                looks.create_task(self._try_to_meet(member))

    async def run(self) -> None:
        """As long as the gateway does."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for member in list(self._by_address.values()):
                    self._tasks.create_task(self._follow(member))
                while True:
                    await self._share()
                    await self._seats.close_left()
                    await asyncio.sleep(self._pace.heartbeat_s)
        finally:
            self._tasks = None

    async def aclose(self) -> None:
        """Connections. The workers themselves go on."""
        await self._seats.close_left(all_of_them=True)
        for member in list(self._by_address.values()):
            await member.worker.aclose()

    async def look(self, member: Member) -> float:
        """Once. Returns for how long to pause before the next time."""
        before = member.version
        try:
            status = await member.worker.status(before, self._pace.heartbeat_s if member.present else 0.0)
            if not member.present or status.name != member.name:
                self._check(member, status)
        except (ClusterError, NotAccepted) as error:
            self._missed(member, error)
            return self._pause_of(member)
        known_already = member.present and status.version == before
        await self._saw(member, status)
        if not member.present:
            return self._pause_of(member)
        return 0.0 if known_already else PACE_S

    async def _follow(self, member: Member) -> None:
        try:
            while self._by_address.get(member.address) is member:
                began = self._clock()
                try:
                    pause_s = await self.look(member)
                except Exception:  # one worker nobody foresaw must not end the looking at the others
                    log.exception("worker %s could not be looked at", member.name)
                    pause_s = self._pace.heartbeat_s
                if pause_s == 0.0 and self._clock() - began < PACE_S:
                    pause_s = self._pace.heartbeat_s  # it does not wait for news
                await _rest(member, pause_s)
                self._forget_if_long_lost(member)
        finally:
            await member.worker.aclose()

    async def _try_to_meet(self, member: Member) -> None:
        with suppress(NotAccepted):  # it is looked for further on
            await self._meet(member)

    def _check(self, member: Member, status: Status) -> None:
        if (known := self._same(member, status)) is not None:
            text = f"What answers at {member.address} is {known.name}, which is known already, at {known.address}."
            raise NameTaken(text, param="address")
        if member.status is not None and member.name != status.name:  # another one stands there now
            self._seats.leave(member, known=False)
            self._telemetry.note(WorkerChanged(member.name, "forgotten", ""))
            member.status = member.served = None
            member.released = False

    async def _saw(self, member: Member, status: Status) -> None:
        before, was = member.status, member.state
        if before is not None and member.present and before.life == status.life and status.version < before.version:
            return  # of two looks at once the older one came last
        member.status, member.seen_at, member.misses = status, self._clock(), 0
        stopped = status.state is WorkerState.STOPPED
        member.standing, member.reason = (Standing.GONE, "It has stopped.") if stopped else (Standing.SEEN, "")
        _remember(member, before, status)
        if member.empty and member.released and all(each.empty for each in self.present):
            self._wish = None  # all were emptied on purpose, by whomever
        if stopped:
            self._seats.leave(member, known=False)
            await self._withdraw(member)
        else:
            await self._seats.seat(member, status, before)
        if member.state != was:
            self._became(member, status.reason)
        member.changed()
        await self._tell_what_it_served(member, status)

    def _missed(self, member: Member, error: ClusterError) -> None:
        member.misses += 1
        if (
            member.standing is Standing.NEW
            and not isinstance(error, WorkerUnreachable)
            and error.message != member.reason
        ):
            log.warning("what answers at %s is not taken for a worker: %s", member.address, error.message)
        if member.standing is not Standing.GONE:  # why that one does not answer is known
            member.reason = error.message
        long_unseen = self._clock() - member.seen_at >= self._pace.lease_s
        if member.present and long_unseen and member.misses >= MISSES:
            member.standing = Standing.LOST
            self._seats.leave(member)
            self._became(member, error.message)
            member.changed()

    def _became(self, member: Member, reason: str) -> None:
        member.since = self._clock()
        self._telemetry.note(WorkerChanged(member.name, member.state, reason))

    def _pause_of(self, member: Member) -> float:
        """Less and less often, where it is away."""
        if member.present:
            return self._pace.heartbeat_s
        longest_s = self._pace.lease_s if member.fixed else LONGEST_PAUSE_S
        return min(longest_s, self._pace.heartbeat_s * 2.0 ** min(member.misses, 10))

    def _forget_if_long_lost(self, member: Member) -> None:
        long_lost = not member.present and self._clock() - member.seen_at > KEPT_S
        if long_lost and not member.fixed and self._by_address.get(member.address) is member:
            self._forget(member)

    async def _tell_what_it_served(self, member: Member, status: Status) -> None:
        """One that has come with nothing. Once in its life: what it could not load then, it cannot load now."""
        if status.state is not WorkerState.EMPTY or member.released or member.told == status.life:
            return
        order = member.served or self.current
        if order is None or not await self.at_rest():
            return
        member.told = status.life
        try:
            await member.worker.load(order, drain_s=0.0)
        except WorkerUnreachable:
            member.told = ""
        except LoadInProgress:
            pass  # another gateway was first
        except ClusterError as error:
            log.warning("worker %s came with nothing, and does not take %s: %s", member.name, order.model, error)

    # --- what gateways tell each other ----------------------------------------------------------------------------

    async def _share(self) -> None:
        if self._shared is None:
            return
        alive = [each.address for each in self.present if not each.in_process]
        try:
            for address in await self._shared.share(alive):
                self.know(address, fixed=False)
        except StoreUnavailable:
            pass  # it tells of that itself; we go on with those we know

    async def _withdraw(self, member: Member) -> None:
        if self._shared is not None and not member.in_process:
            with suppress(StoreUnavailable):
                await self._shared.withdraw(member.address)


async def _rest(member: Member, seconds: float) -> None:
    """Cut short where it is announced again."""
    if seconds:
        member.woken.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await member.woken.wait()


def _remember(member: Member, before: Status | None, status: Status) -> None:
    """What it would serve again. One that is emptied while it lives was emptied on purpose."""
    if status.state is WorkerState.READY:
        member.served, member.released = status.order, False
    elif status.state is WorkerState.EMPTY and before is not None and before.life == status.life:
        emptied = before.state is not WorkerState.EMPTY
        member.served, member.released = (None, True) if emptied else (member.served, member.released)
