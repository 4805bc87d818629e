"""Who may enter, in which order, and how many at once.

A call that enters holds a `Ticket`, and with it a lease on a replica. Where no replica has room it waits in its
model's line; whoever leaves hands the room on at once, so that no slot idles while somebody waits for it.
"""

import asyncio
import math
from collections.abc import Callable

from app.cluster.fleet import Fleet
from app.cluster.replica import Replica
from app.errors import DeadlinePassed, Draining, NoReplica, QueueFull, WouldMissDeadline
from app.gateway.line import Line
from app.gateway.ticket import Ticket, cost_of
from app.generation import Call, Expected, Usage
from app.reliability.fair_queue import Queue
from app.reliability.service_rate import ServiceRate
from app.reliability.watch import Watch
from app.telemetry.record import Record
from app.telemetry.story import Stood, Story

DRAINED_S = 1.0
"""After so long a client may ask again: by then another gateway answers, or this one anew."""

CAUTION = 1.1
"""Waits are predicted so much longer: to be refused late is worse than to be refused."""

STILL_LOADING = "The model was not loaded within this request's time limit."
DISPLACED = "Its place in the line was given to a call of higher priority, or of a tenant that had fewer."


class Admission:
    def __init__(
        self, fleet: Fleet, watch: Watch, make_queue: Callable[[], Queue[Ticket]], *, refuses_early: bool = True
    ) -> None:
        """`refuses_early`: whoever would come too late is not let into the line at all."""
        self.entered = 0
        self.draining = False
        self.clock = watch.clock
        self.due = math.inf
        """When a drain's patience ends."""
        self._fleet = fleet
        self._watch = watch
        self._make_queue = make_queue
        self._refuses_early = refuses_early
        self._inside: set[Ticket] = set()
        self._lines: dict[str, Line] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        fleet.on_room = self._hand_on
        fleet.on_change = self._look_again
        fleet.wanted = self._is_wanted

    def admit(self, call: Call, expected: Expected, record: Record) -> Ticket:
        return Ticket(self, call, expected, record)

    @property
    def inside(self) -> int:
        return len(self._inside)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def lines(self) -> dict[str, Line]:
        """By model."""
        return dict(self._lines)

    def waiting_stories(self) -> set[int]:
        """Of those that wait, by identity."""
        return {id(ticket.story) for ticket in self._inside if ticket.waits}

    def place_of(self, story: Story) -> tuple[int, int] | None:
        """Where its call stands in a line of how many; `None`: it does not wait."""
        for ticket in self._inside:
            if ticket.story is story and ticket.waits:
                line = self.line(ticket.call.model)
                if ticket in line.returning:
                    return line.returning.index(ticket) + 1, len(line)
                return len(line.returning) + line.queue.place_of(ticket), len(line)
        return None

    def line(self, model: str) -> Line:
        line = self._lines.get(model)
        if line is None:  # only models that a replica serves come here, so there are few
            line = self._lines[model] = Line(self._make_queue(), ServiceRate(self.clock))
        return line

    # --- a ticket's way -----------------------------------------------------------------------------------------

    def enter(self, ticket: Ticket) -> float:
        """When it did."""
        if self.draining:
            raise Draining(retry_after=DRAINED_S)
        now = self.clock()
        if ticket.expires_at <= now:
            raise DeadlinePassed
        self.entered += 1
        self._inside.add(ticket)
        self._watch.add(ticket)
        self._empty.clear()
        return now

    def leave(self, ticket: Ticket, usage: Usage | None) -> None:
        self._inside.discard(ticket)
        self._watch.discard(ticket)
        if ticket.charged:
            line = self.line(ticket.call.model)
            used = 0.0 if usage is None else cost_of(usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens)
            line.queue.settle(ticket.tenant, ticket.cost, used)
            if usage is not None:
                line.rate.finished(self.clock() - ticket.since, ticket.cost)
        if not self._inside:
            self._empty.set()

    def take(self, ticket: Ticket, *, anew: bool = True) -> bool:
        """A lease at once, if there is room that nobody waits for with a better right.

        Those that wait are served first. What they leave is room that they must not have: they avoid its replica, or
        it is reserved for others.
        """
        waiting = self._lines.get(ticket.call.model)
        if anew and waiting is not None and len(waiting):
            self._serve(waiting)
        lease = self._fleet.lease(ticket.call, ticket.avoiding, ticket.cost, waited=not anew)
        if lease is None:
            return False
        if anew:
            self.line(ticket.call.model).queue.charge(ticket)
            ticket.charged = True
        ticket.since = self.clock()
        ticket.grant(lease)
        return True

    def queue(self, ticket: Ticket) -> None:
        """A place in the line; refused at once where waiting cannot end well."""
        line = self.line(ticket.call.model)
        if self._refuses_early or ticket.story is not None:
            ahead = len(line.returning) + line.queue.ahead_of(ticket)
            wait_s = self._wait_s(ticket.call.model, ahead)
            needs_s = CAUTION * wait_s + line.rate.times_of(ticket.cost).mostly_s
            left_s = ticket.left_s
            if ticket.story is not None:
                ticket.story.stood += (Stood(self.clock(), ahead, len(line), wait_s, needs_s, left_s),)
            if self._refuses_early and needs_s >= left_s:
                raise WouldMissDeadline(retry_after=needs_s - left_s)
        if not line.queue.has_room_for(ticket):
            wait_s = self._wait_s(ticket.call.model, len(line))
            yielding = line.queue.yielding_to(ticket)
            if not yielding:
                raise QueueFull(retry_after=wait_s)
            for each in yielding:
                line.queue.remove(each)
                if (stood := each.stood) is not None:
                    stood.displaced_by = ticket.call.id
                each.refuse(QueueFull(DISPLACED, code="displaced", retry_after=wait_s))
        line.queue.push(ticket)

    def requeue(self, ticket: Ticket) -> None:
        line = self.line(ticket.call.model)
        if ticket.story is not None:
            ahead = len(line.returning)
            wait_s = self._wait_s(ticket.call.model, ahead)
            stood = Stood(self.clock(), ahead, len(line), wait_s, wait_s, ticket.left_s, again=True)
            ticket.story.stood += (stood,)
        line.returning.append(ticket)

    def forget(self, ticket: Ticket) -> None:
        """It waits no longer."""
        line = self.line(ticket.call.model)
        if not line.queue.remove(ticket) and ticket in line.returning:
            line.returning.remove(ticket)

    def wait_for(self, ticket: Ticket) -> float:
        """How long a newcomer like this would wait, as far as can be known."""
        line = self.line(ticket.call.model)
        return self._wait_s(ticket.call.model, len(line.returning) + line.queue.ahead_of(ticket))

    def too_late(self, ticket: Ticket) -> WouldMissDeadline:
        """Its time is over, and its turn has not come."""
        text = STILL_LOADING if ticket.call.model in self._fleet.coming else None
        return WouldMissDeadline(text, code="model_loading" if text else None, retry_after=self.wait_for(ticket))

    def part_done(self, ticket: Ticket) -> float:
        """How much of its work an engine has probably done, by the time that such calls take."""
        usual_s = self.line(ticket.call.model).rate.times_of(ticket.cost).mean_s
        return min(1.0, (self.clock() - ticket.since) / usual_s) if usual_s > 0 else 1.0

    def _wait_s(self, model: str, ahead: int) -> float:
        """For a model that is still coming, from when it may be there; where nobody can guess that, from now."""
        ready_at = self._fleet.ready_at(model)
        coming_s = 0.0 if ready_at is None else max(0.0, ready_at - self.clock())
        return coming_s + self.line(model).rate.wait_for(ahead, self._fleet.slots(model))

    # --- room for others ----------------------------------------------------------------------------------------

    def _hand_on(self, replica: Replica) -> None:
        """A slot is free. Of several models that it could serve, the one goes first that has waited longest."""
        lines = [line for model in replica.models if (line := self._lines.get(model)) and len(line)]
        if len(lines) > 1:
            lines.sort(key=lambda line: line.queue.oldest_since() or 0.0)
        for line in lines:
            self._serve(line)

    def _is_wanted(self, replica: Replica) -> bool:
        return any(len(line) for model in replica.models if (line := self._lines.get(model)) is not None)

    def _look_again(self) -> None:
        for line in self._lines.values():
            if len(line):
                self._serve(line)

    def _serve(self, line: Line) -> None:
        for ticket in list(line.returning):
            if self._grant(ticket):
                line.returning.remove(ticket)
        while (head := line.queue.pop(lambda waiting: self._comes_up(waiting, line))) is not None:
            head.charged = True
            if self._comes_too_late(head, line):
                head.refuse(WouldMissDeadline(retry_after=line.rate.mean_s))
            else:
                self._grant(head)

    def _comes_up(self, ticket: Ticket, line: Line) -> bool:
        if self._fleet.is_full_for(ticket.call):
            return False
        if (stood := ticket.stood) is not None:
            stood.tenants, stood.promoted = line.queue.turn_of(ticket)
        return True

    def _comes_too_late(self, ticket: Ticket, line: Line) -> bool:
        """It would almost certainly be cut in the middle: the work would be for nothing."""
        return self._refuses_early and line.rate.times_of(ticket.cost).hardly_s > ticket.left_s

    def _grant(self, ticket: Ticket) -> bool:
        try:
            lease = self._fleet.lease(ticket.call, ticket.avoiding, ticket.cost, waited=True)
        except NoReplica as error:
            ticket.refuse(error)
            return True
        if lease is None:
            return False
        ticket.since = self.clock()
        ticket.grant(lease)
        return True

    # --- the end ------------------------------------------------------------------------------------------------

    def drain(self, patience_s: float) -> None:
        """Nobody enters any more; what runs gets this long, and is then ended with the reason."""
        self.draining = True
        self.due = self.clock() + patience_s
        self._watch.add(self)

    def expire(self, now: float) -> None:
        self.due = math.inf
        for ticket in list(self._inside):
            ticket.cut(Draining(retry_after=DRAINED_S))

    async def empty(self) -> None:
        """All have left."""
        await self._empty.wait()
        self._watch.discard(self)
