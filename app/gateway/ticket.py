"""One call's place in the gateway: with a lease on a replica, or in the line until there is one."""

import asyncio
import math
from collections.abc import Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from app.cluster.replica import Lease
from app.errors import DeadlinePassed, GatewayError
from app.generation import Call, Expected
from app.telemetry.record import Record
from app.telemetry.story import Stood, Story

if TYPE_CHECKING:
    from app.gateway.admission import Admission

OUTPUT_WEIGHT = 2.0
"""A token made costs about as much of a GPU as two that are read."""


def cost_of(prompt_tokens: int, output_tokens: int) -> float:
    return prompt_tokens + OUTPUT_WEIGHT * output_tokens


class Ticket:
    """One call's place, from its coming to its leaving, as a block. Outside it nothing is held.

    While it lasts the call's time limit is watched over: in the line it becomes a refusal, at work it ends the work.
    """

    __slots__ = (
        "_admission",
        "_call",
        "_cut_by",
        "_lease",
        "_record",
        "_task",
        "_turn",
        "avoiding",
        "charged",
        "cost",
        "due",
        "expected",
        "expires_at",
        "priority",
        "prompt_tokens",
        "since",
        "tenant",
        "waits_since",
    )

    def __init__(self, admission: "Admission", call: Call, expected: Expected, record: Record) -> None:
        self._admission = admission
        self._call = call
        self._record = record
        self._task: asyncio.Task[Any] | None = None
        self._turn: asyncio.Future[None] | None = None
        self._cut_by: GatewayError | None = None
        self.tenant = call.tenant
        self.priority = call.priority
        self.expected = expected
        self.cost = cost_of(expected.prompt_tokens, expected.output_tokens)
        self.prompt_tokens = expected.prompt_tokens
        self.expires_at = self.due = call.expires_at
        self.avoiding: Collection[str] = ()
        self._lease: Lease | None = None
        self.charged = False
        """Its tenant's share has been charged with what it is expected to cost."""
        self.since = 0.0
        """When it got its lease."""
        self.waits_since = 0.0

    @property
    def call(self) -> Call:
        return self._call

    @property
    def lease(self) -> Lease:
        assert self._lease is not None, "a ticket has a lease inside its block only"
        return self._lease

    @property
    def left_s(self) -> float:
        return self.expires_at - self._admission.clock()

    @property
    def turn_in_s(self) -> float:
        """When a newcomer like this would have its turn, as far as can be known."""
        return self._admission.wait_for(self)

    async def __aenter__(self) -> Self:
        admission = self._admission
        self._record.allowed = admission.enter(self)
        self._task = asyncio.current_task()
        try:
            if not admission.take(self):
                await self._wait(admission.queue)
        except BaseException as error:
            self._leave()
            if ours := self._ours(error):
                raise ours from None
            raise
        self._record.admitted = self.since
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._leave()
        if ours := self._ours(error):
            raise ours from None

    @property
    def part_done(self) -> float:
        return self._admission.part_done(self)

    @property
    def story(self) -> Story | None:
        return self._record.story

    @property
    def stood(self) -> Stood | None:
        """Its stay in the line, or its last one; `None` also where nobody wants to know."""
        return self.story.stood[-1] if self.story is not None and self.story.stood else None

    @property
    def waits(self) -> bool:
        return self._turn is not None

    def hold(self, lease: Lease) -> None:
        """Go on with this one; what was held before is given back."""
        if lease is not self._lease:
            self.release()
            self._lease = lease

    def release(self) -> None:
        """Give the replica back before the block ends: it failed, and others need not wait for what is tried next."""
        if self._lease is not None:
            self._lease.release()

    def finish(self) -> None:
        """The engine has said all of its answer: no time limit and no drain takes that from the client any more."""
        self._task = None
        self.due = math.inf

    async def move(self, avoiding: Collection[str]) -> None:
        """To another replica, ahead of those that have not been served at all."""
        self.release()
        self._lease = None
        self.avoiding = avoiding
        if not self._admission.take(self, anew=False):
            await self._wait(self._admission.requeue)

    # --- from outside -------------------------------------------------------------------------------------------

    def grant(self, lease: Lease) -> None:
        """Even if it is being cancelled at this moment: then its leaving gives the lease back."""
        self._lease = lease
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    def refuse(self, error: GatewayError) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_exception(error)

    def cut(self, reason: GatewayError) -> None:
        """End the work inside. The first reason counts."""
        if self._cut_by is None and self._task is not None:
            self._cut_by = reason
            self._task.cancel()

    def expire(self, now: float) -> None:
        self.due = math.inf
        if self._turn is not None and not self._turn.done():
            self._admission.forget(self)
            self.refuse(self._admission.too_late(self))
        else:
            self.cut(DeadlinePassed())

    # --- inside -------------------------------------------------------------------------------------------------

    async def _wait(self, join: Callable[["Ticket"], None]) -> None:
        began = self.waits_since = self._admission.clock()
        join(self)
        turn = self._turn = asyncio.get_running_loop().create_future()
        try:
            await turn
        finally:
            self._turn = None
            ended = self._admission.clock()
            self._record.queued_s += ended - began
            self._record.waits += ((began, ended),)
            if (stood := self.stood) is not None:
                stood.until = ended
            if self._lease is None:
                self._admission.forget(self)

    def _leave(self) -> None:
        self._task = None
        self._admission.leave(self, self._record.usage)
        self.release()

    def _ours(self, error: BaseException | None) -> GatewayError | None:
        """Our own cut and no one else's: what it was for."""
        if self._cut_by is None:
            return None
        task = asyncio.current_task()
        ours_alone = task is not None and task.uncancel() == 0
        return self._cut_by if ours_alone and isinstance(error, asyncio.CancelledError) else None
