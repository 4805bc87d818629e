"""Sends a call to the replica that its ticket holds, and to another one if that fails: from the beginning before the
commit point, and for the rest after it, where that can be asked for."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Container, Iterable

import msgspec

from app.clock import Clock
from app.cluster.fleet import Fleet
from app.cluster.replica import Lease
from app.engines.base import flow, whole
from app.errors import (
    DeadlinePassed,
    EngineBusy,
    EngineError,
    EngineUnreachable,
    GatewayError,
    NoReplica,
    WouldMissDeadline,
)
from app.gateway.answers import Sink
from app.gateway.hedge import Race
from app.gateway.passage import SAMPLED, Passage
from app.gateway.relay import Relay
from app.gateway.ticket import Ticket
from app.generation import Call, Usage
from app.reliability.hedge import HedgeDelay
from app.reliability.retry import Retry, RetryBudget
from app.telemetry.base import EngineErrorSeen, StreamTakenOver, Telemetry
from app.telemetry.record import Attempt, Record
from app.telemetry.story import NotRetried
from app.tracebacks import forget
from app.wire.answers import usage_of

STRIDE = 37
"""From one stream to the next another event is timed, so that short ones are sampled as well as long ones."""


class Dispatch:
    def __init__(
        self,
        fleet: Fleet,
        retry: Retry,
        budget: RetryBudget,
        hedge: HedgeDelay,
        telemetry: Telemetry,
        clock: Clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_delay: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`on_delay` hears how long some events took from the engine's connection to the client's."""
        self._budget = budget
        self._fleet = fleet
        self._retry = retry
        self._hedge = hedge
        self._telemetry = telemetry
        self._clock = clock
        self._sleep = sleep
        self._on_delay = on_delay
        self._turn = 0

    async def send(self, call: Call, ticket: Ticket, out: Sink, record: Record) -> None:
        self._budget.deposit()
        failed: dict[str, EngineError] = {}
        relay = Relay(call)
        for attempt in itertools.count(1):
            record.replica, record.attempts = ticket.lease.replica.name, attempt
            record.routed_by = ticket.lease.reason
            try:
                await self._counted(ticket, relay, out, record, failed)
            except EngineError as error:
                pause = self._failed(attempt, error, relay, ticket, out, record, failed)
            else:
                ticket.lease.succeeded()
                return
            if pause is None:
                await self._complete(relay, ticket, out, record)
                return
            ticket.release()
            await self._sleep(pause)
            record.sought = self._clock()
            await self._move(ticket, relay, failed)

    async def _counted(
        self, ticket: Ticket, relay: Relay, out: Sink, record: Record, failed: dict[str, EngineError]
    ) -> None:
        """Whatever ends the work of an engine, what it used is known afterwards. A failure that the client has seen
        nothing of is not on their account."""
        charged, failure = True, ""
        try:
            await self._answer(ticket, relay, out, record, failed)
        except EngineError as error:
            charged, failure = out.committed, type(error).__name__
            raise
        finally:
            _end(record.tries, self._clock(), failure)
            if not charged:
                record.usage, record.events = None, 0
            elif record.usage is None:
                record.guessed = True
                record.usage = _guess(relay.call, ticket, record.events, answered=out.committed)

    def _begin(self, lease: Lease, call: Call, record: Record, *, beside: bool = False) -> Call:
        """An attempt is written down. Where traces are kept, the engine's part in it hangs below this attempt."""
        now = self._clock()
        attempt = Attempt(lease.replica.name, now, beside=beside)
        attempt.reason, attempt.among, attempt.options = lease.reason, lease.among, lease.options
        record.tries += (attempt,)
        if record.trace is None or not record.trace.sampled:
            return call
        attempt.trace = record.trace.child()
        attempt.address = lease.replica.address
        attempt.sought = now if beside else record.sought or record.allowed
        return msgspec.structs.replace(call, traceparent=attempt.trace.traceparent)

    def _failed(
        self,
        attempt: int,
        error: EngineError,
        relay: Relay,
        ticket: Ticket,
        out: Sink,
        record: Record,
        failed: dict[str, EngineError],
    ) -> float | None:
        """Seconds until the next attempt; `None` if none is needed any more. Raises what its client is to be told if
        there must not or cannot be one."""
        replica, call = ticket.lease.replica.name, relay.call
        failed[replica] = error
        forget(error)
        goes_on = relay.break_off(replica, error) if out.committed else True
        pause = self._pause_after(attempt, error, relay, failed, ticket.left_s) if goes_on else None
        self._tell(ticket.lease, call, error, retried=pause is not None)
        if pause is None and not relay.missing:
            if record.story is not None:
                record.story.not_retried = self._why_not(attempt, error, relay, failed, goes_on=goes_on)
            raise _advised(relay.interrupted or error, failed, ticket)
        return pause

    def _pause_after(
        self, attempt: int, error: EngineError, relay: Relay, failed: Container[str], left_s: float
    ) -> float | None:
        """Seconds until the next attempt; `None` where there must not or cannot be one. What draws on the budget, and
        what does not: docs/adr/0023."""
        pause = self._retry.pause_after(attempt, error, left_s)
        if pause is None or not self._fleet.has_other(relay.call.model, than=failed):
            return None
        if relay.interrupted is not None:
            return pause
        allowed = self._budget.withdraw() if error.draws_on_budget else not self._budget.off
        return pause if allowed else None

    def _why_not(
        self, attempt: int, error: EngineError, relay: Relay, failed: Container[str], *, goes_on: bool
    ) -> NotRetried:
        if not goes_on:
            return NotRetried.BEGUN
        if not error.retryable:
            return NotRetried.USELESS
        if attempt >= self._retry.attempts:
            return NotRetried.ATTEMPTS
        if not self._fleet.has_other(relay.call.model, than=failed):
            return NotRetried.NO_OTHER
        return NotRetried.BUDGET_OR_TIME

    async def _move(self, ticket: Ticket, relay: Relay, failed: dict[str, EngineError]) -> None:
        """To a replica that has not failed this call yet. Where none is left, the last failure says more than that."""
        try:
            await ticket.move(failed)
        except NoReplica:
            last = relay.interrupted or list(failed.values())[-1]
            raise _advised(last, failed, ticket) from None
        except WouldMissDeadline:
            if relay.interrupted is None:
                raise
            raise DeadlinePassed from None  # it has had its turn

    async def _complete(self, relay: Relay, ticket: Ticket, out: Sink, record: Record) -> None:
        """All was made, and only the last events did not come: no engine is needed for them."""
        ticket.finish()
        shown = relay.read(relay.missing)
        record.usage, record.events = relay.usage, relay.reader.events
        await out.write(shown)
        await out.end()

    async def _answer(
        self, ticket: Ticket, relay: Relay, out: Sink, record: Record, failed: dict[str, EngineError]
    ) -> None:
        call = self._begin(ticket.lease, relay.call, record)
        if not call.stream:
            async with ticket.lease.replica.engine.open(call) as blocks:
                body = await whole(blocks)
                record.usage = usage_of(body)
                ticket.finish()
            await out.write(body)
            return
        began = self._clock()
        hedge_s = self._hedge.after(call.model)
        if hedge_s is None:
            async with ticket.lease.replica.engine.open(call) as blocks:
                first = await anext(blocks, b"")
                self._hedge.saw(call.model, self._clock() - began)
                await self._stream(ticket, first, blocks, relay, out, record)
        else:

            def second() -> tuple[Lease, Call] | None:
                lease = self._second(ticket, failed)
                return None if lease is None else (lease, self._begin(lease, call, record, beside=True))

            def lost(lease: Lease, error: EngineError) -> None:
                failed[lease.replica.name] = error
                forget(error)
                _end(_on(lease, record), self._clock(), type(error).__name__)
                self._tell(lease, call, error, retried=True)

            async with Race(ticket.lease, call, hedge_s, second, lost) as race:
                won, now = race.winner, self._clock()
                ticket.hold(won.lease)
                self._hedge.saw(call.model, now - began)
                _end_outrun(record.tries, won.lease, now)
                record.replica, record.routed_by = won.lease.replica.name, won.lease.reason
                await self._stream(ticket, won.first, won.blocks, relay, out, record)
        await out.end()

    async def _stream(
        self, ticket: Ticket, first: bytes, blocks: AsyncIterator[bytes], relay: Relay, out: Sink, record: Record
    ) -> None:
        ticket.lease.answers()
        reader = relay.begin()
        self._turn = (self._turn + STRIDE) % SAMPLED
        passage = Passage(relay, ticket, out, self._clock, self._on_delay, self._turn)
        try:
            taken = passage.take(first)
            if first and relay.left:
                self._taken_over(relay, ticket.lease, record)
            while not taken or await flow(blocks, passage.take):
                await passage.write()
                taken = True
            reader.close()
        except GatewayError:
            if not reader.ended:  # what goes wrong after the proper end takes nothing from anybody
                raise
        finally:
            record.usage, record.events = relay.usage, relay.reader.events
            record.guessed = relay.guessed

    def _second(self, ticket: Ticket, failed: Collection[str]) -> Lease | None:
        """Another replica, if one has room while this one dawdles, and if that may be tried once more."""
        try:
            lease = self._fleet.lease(ticket.call, (ticket.lease.replica.name, *failed), ticket.cost)
        except NoReplica:
            return None
        if lease is not None and not self._hedge.take():
            lease.release()
            return None
        return lease

    def _taken_over(self, relay: Relay, lease: Lease, record: Record) -> None:
        record.taken_over += 1
        self._telemetry.note(StreamTakenOver(record.id, relay.left, lease.replica.name))
        relay.left = ""

    def _tell(self, lease: Lease, call: Call, error: EngineError, *, retried: bool) -> None:
        if error.blames_engine:
            lease.failed()
        if isinstance(error, EngineUnreachable):
            self._fleet.failed(lease.replica, type(error).__name__)
        self._telemetry.note(EngineErrorSeen(call.id, lease.replica.name, type(error).__name__, error.detail, retried))


def _on(lease: Lease, record: Record) -> list[Attempt]:
    return [attempt for attempt in record.tries if attempt.replica == lease.replica.name]


def _end(tries: Iterable[Attempt], now: float, failure: str) -> None:
    """Those that have not ended yet."""
    for attempt in tries:
        if not attempt.ended:
            attempt.ended, attempt.error = now, failure


def _end_outrun(tries: Iterable[Attempt], winner: Lease, now: float) -> None:
    for attempt in tries:
        if not attempt.ended and attempt.replica != winner.replica.name:
            attempt.ended, attempt.outrun = now, True


def _advised(error: EngineError, failed: Collection[str], ticket: Ticket) -> EngineError:
    """What was tried on several replicas is not to be tried again by the client's library on top. Backpressure is, once
    there may be room."""
    if not isinstance(error, EngineBusy):
        error.should_retry = False if len(failed) > 1 else error.should_retry
    elif error.retry_after is None:
        error.retry_after = ticket.turn_in_s
    return error


def _guess(call: Call, ticket: Ticket, events: int, *, answered: bool) -> Usage:
    """For an engine that does not tell, or did not come to it. An event is about a token; of a whole answer that was
    left, as much is made as there was time for."""
    expected = ticket.expected
    if call.stream:
        return Usage(expected.prompt_tokens, events)
    part = 1.0 if answered else ticket.part_done
    return Usage(expected.prompt_tokens, round(part * expected.output_tokens))
