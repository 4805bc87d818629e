"""How many requests an engine is given at once, learned from what it tells of itself.

Never from latency: an answer's time is made of its prompt and its length, and says little about the engine.
"""

from dataclasses import dataclass

KV_FULL = 0.95
KV_FREE = 0.85
LOOKS = 2
"""So many looks in a row must find it queueing: a single one also finds prompts that have only just come."""


@dataclass(frozen=True)
class Load:
    """What an engine tells of itself."""

    waiting: int
    running: int
    kv_share: float | None
    """Of its KV cache, in use; `None` where it does not say."""


class AdaptiveLimit:
    """A tenth less when the engine has too much, a little more when it could have more and more is wanted.

    While more are in flight than the limit allows, an earlier decrease has not come through yet, and what the engine
    shows belongs to the limit before it: then nothing changes.
    """

    def __init__(self, start: int, lowest: int, highest: int) -> None:
        self.limit = max(lowest, min(start, highest))
        self._lowest = lowest
        self._highest = highest
        self._queued_looks = 0

    def observe(self, load: Load, in_flight: int, wanted: bool) -> int:
        """The limit from now on. `wanted`: somebody waits for a slot with us."""
        if in_flight > self.limit:
            self._queued_looks = 0
            return self.limit
        self._queued_looks = self._queued_looks + 1 if load.waiting else 0
        kv_share = load.kv_share or 0.0
        if self._queued_looks >= LOOKS or kv_share >= KV_FULL:
            self._queued_looks = 0
            self.limit = max(self._lowest, self.limit * 9 // 10)
        elif wanted and in_flight == self.limit and not load.waiting and kv_share < KV_FREE:
            self.limit = min(self._highest, self.limit + max(1, self.limit // 20))
        return self.limit
