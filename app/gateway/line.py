"""Those who wait for one model, and how soon they will have their turn."""

from collections import deque

from app.gateway.ticket import Ticket
from app.reliability.fair_queue import Queue
from app.reliability.service_rate import ServiceRate


class Line:
    __slots__ = ("queue", "rate", "returning")

    def __init__(self, queue: Queue[Ticket], rate: ServiceRate) -> None:
        self.queue = queue
        self.rate = rate
        self.returning: deque[Ticket] = deque()
        """Those whose replica has failed them. They have waited once."""

    def __len__(self) -> int:
        return len(self.returning) + len(self.queue)

    @property
    def prompt_tokens(self) -> int:
        return self.queue.tokens + sum(each.prompt_tokens for each in self.returning)

    def oldest_s(self, now: float) -> float:
        """How long the one has waited that waits longest."""
        heads = [each.waits_since for each in self.returning]
        if (queued := self.queue.oldest_since()) is not None:
            heads.append(queued)
        return max(0.0, now - min(heads)) if heads else 0.0
