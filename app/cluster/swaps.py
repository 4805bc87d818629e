"""Changes of models, one at a time: begun, followed, given up."""

import asyncio
import secrets
from datetime import UTC, datetime, timedelta

import msgspec

from app.clock import Clock
from app.cluster.control import Order, Released
from app.cluster.member import EVERYWHERE, Member
from app.cluster.members import Members
from app.cluster.plan import Candidate, chosen_of, rounds_of
from app.cluster.progress import ENDED, Outcome, Step
from app.cluster.swap import Limits, Swap, Wish
from app.cluster.turn import Turn
from app.errors import ClusterError
from app.telemetry.base import SwapBegan, SwapEnded, Telemetry

MOMENT = "%Y%m%dT%H%M%S.%f"
"""In the ids of orders."""


class Swaps:
    """At most one at a time."""

    def __init__(self, members: Members, telemetry: Telemetry, clock: Clock, limits: Limits, turn: Turn) -> None:
        self.latest: Swap | None = None
        """The one that is carried out, or was last."""
        self._members = members
        self._telemetry = telemetry
        self._clock = clock
        self._limits = limits
        self._turn = turn
        self._tasks: asyncio.TaskGroup | None = None
        members.at_rest = turn.is_free

    @property
    def running(self) -> bool:
        return self.latest is not None and self.latest.running

    async def run(self) -> None:
        """As long as the gateway does: whoever asked for a swap may hang up meanwhile."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await asyncio.Event().wait()
        finally:
            self._tasks = None

    async def begin(self, wish: Wish) -> Swap:
        """`LoadInProgress` while another is carried out; `NoWorkers` where nobody is there to do it."""
        assert self._tasks is not None, "swaps are carried out while `run` does"
        wish = _named(wish, self._members.current)
        await self._turn.take()
        try:
            if wish.everywhere and not self._members.present:
                self._members.wish(wish.order)
            swap = self._planned(wish)
            self._members.expect(wish.order, sum(map(len, swap.rounds)))
        except BaseException:
            await self._turn.free()
            raise
        self.latest = swap
        self._telemetry.note(SwapBegan(swap.id, wish.order.model, sum(map(len, swap.rounds))))
        self._tasks.create_task(self._carry_out(swap))
        return swap

    async def cancel(self, *, gives_back: bool = True) -> Swap | None:
        """Returns when it is over."""
        swap = self.latest
        if swap is not None and swap.running:
            swap.give_up("The change of models was cancelled.", gives_back=gives_back)
            await swap.feed.ended()
        return swap

    async def release_all(self, drain_s: float | None = None) -> dict[str, Released | ClusterError]:
        """What is being loaded is given up."""
        await self.cancel(gives_back=False)
        await self._turn.take()
        try:
            self._members.wish(None)
            limit_s = self._limits.drain_s if drain_s is None else drain_s
            names = [each.name for each in self._members.present]
            ended = await asyncio.gather(*(self._released(name, limit_s) for name in names))
            return dict(zip(names, ended, strict=True))
        finally:
            await self._turn.free()

    async def _released(self, name: str, drain_s: float) -> Released | ClusterError:
        try:
            return await self._members.release(name, drain_s)
        except ClusterError as error:
            return error

    def _planned(self, wish: Wish) -> Swap:
        present = [_candidate(each, wish) for each in self._members.present]
        serving = sum(each.serving for each in present)
        if wish.workers is not None:
            names = {self._members.reached(name).name for name in wish.workers}
            present = [each for each in present if each.name in names]
        chosen = chosen_of(present, wish.count)
        rounds = rounds_of([each for each in chosen if not each.done], serving, wish.floor)
        swap = Swap(wish, rounds, self._members, self._limits, self._clock)
        for each in chosen:
            if each.done:
                swap.feed.tell(Step(worker=each.name, step="skipped", said="It serves it already."))
        return swap

    async def _carry_out(self, swap: Swap) -> None:
        try:
            async with asyncio.TaskGroup() as beside:
                keeping = beside.create_task(self._keep_turn(swap))
                await swap.run()
                keeping.cancel()
            if swap.wish.everywhere and swap.outcome is Outcome.DONE:
                self._members.wish(swap.wish.order)
        finally:
            self._members.expect(None)
            await self._turn.free()
            failure = swap.failure
            outcome = swap.outcome if swap.outcome in ENDED else Outcome.CANCELLED
            reason = failure.message if failure is not None else ""
            seconds = swap.account().seconds
            self._telemetry.note(SwapEnded(swap.id, swap.wish.order.model, outcome.value, seconds, reason))
            swap.feed.close()  # last: whoever waited for it may begin the next one

    async def _keep_turn(self, swap: Swap) -> None:
        await self._turn.keep()
        swap.give_up("Another gateway has begun a change of models.")


def _candidate(member: Member, wish: Wish) -> Candidate:
    return Candidate(member.name, serving=member.ready, done=not wish.force and member.serves(wish.order))


def _named(wish: Wish, before: Order | None) -> Wish:
    """Its order with an id, to know it again in a worker's words. It is later than the one before even if a clock was
    set back.
    """
    kind = EVERYWHERE if wish.everywhere else "some-"
    moment = max(datetime.now(UTC), _after(before)).strftime(MOMENT)
    order = msgspec.structs.replace(wish.order, id=f"{kind}{moment}-{secrets.token_hex(4)}")
    return Wish(order, wish.workers, wish.count, wish.floor, wish.drain_s, wish.force)


def _after(order: Order | None) -> datetime:
    """One for all; an id that somebody else chose may hold no moment."""
    try:
        said = "" if order is None else order.id.removeprefix(EVERYWHERE).partition("-")[0]
        return datetime.strptime(said, MOMENT).replace(tzinfo=UTC) + timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return datetime.min.replace(tzinfo=UTC)
