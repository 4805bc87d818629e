"""A stream's blocks on their way from one replica to the client."""

from collections.abc import Callable

from app.clock import Clock
from app.gateway.answers import Sink
from app.gateway.relay import Relay
from app.gateway.ticket import Ticket

SAMPLED = 64
"""Of so many events of streams one is timed. To time each would make relaying it a hundredth dearer, for nothing."""


class Passage:
    """What is done for each event, and what for it is looked at each time: in one place, in one object. With a thousand
    streams open a processor finds none of this in its caches, and waits for each piece of memory by itself."""

    __slots__ = ("_clock", "_on_delay", "_out", "_reader", "_relay", "_shown", "_ticket", "_timed_from", "_turn")

    def __init__(
        self, relay: Relay, ticket: Ticket, out: Sink, clock: Clock, on_delay: Callable[[float], None], turn: int
    ) -> None:
        """`turn`: which of so many events is timed."""
        self._relay = relay
        self._reader = relay.reader
        self._ticket = ticket
        self._out = out
        self._clock = clock
        self._on_delay = on_delay
        self._turn = turn
        self._shown = b""
        self._timed_from = 0.0

    def take(self, block: bytes) -> bool:
        """Whether its client has taken what is shown of it. Otherwise that is still to be written."""
        reader = self._reader
        timed = reader.events % SAMPLED == self._turn and reader.events
        if timed:
            self._timed_from = self._clock()
        shown = self._relay.read(block)
        if reader.ended:
            self._ticket.finish()
        if shown and not self._out.offer(shown, last=reader.ended):
            self._shown = shown
            return False
        if timed:
            self._told()
        return True

    async def write(self) -> None:
        """What it has not taken yet, as soon as it does."""
        shown, self._shown = self._shown, b""
        await self._out.write(shown)
        if self._timed_from:
            self._told()

    def _told(self) -> None:
        self._on_delay(self._clock() - self._timed_from)
        self._timed_from = 0.0
