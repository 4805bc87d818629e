"""When a stream that is slow to begin may be started on a second replica, and how often. Off with a share of 0."""

from bisect import bisect_left, insort
from collections import deque

from app.clock import Clock
from app.reliability.retry import RetryBudget

KEPT = 200
"""Latest times that count, by model."""
ENOUGH = 40
"""With fewer, the slowest twentieth is one or two requests, and chance."""
REMEMBERED_S = 60.0


class HedgeDelay:
    def __init__(self, share: float, clock: Clock) -> None:
        self._share = share
        self._budget = RetryBudget(share, clock, least_per_s=0.0, ttl_s=REMEMBERED_S)
        self._times: dict[str, FirstBytes] = {}

    def after(self, model: str) -> float | None:
        """Seconds without a first byte after which a second try may start; `None`: not at all, or not known yet."""
        times = self._times.get(model)
        return times.slow() if times is not None else None

    def take(self) -> bool:
        """Whether there may be one more: at most their share of the streams that began in the last minute."""
        return self._budget.withdraw()

    def saw(self, model: str, ttfb_s: float) -> None:
        """A stream began, so long after it was first tried, whichever try it was.

        Leaving out those with a second try would leave out the slow ones, and make the next ones seem slow sooner.
        """
        if self._share <= 0:
            return
        self._budget.deposit()
        times = self._times.get(model)
        if times is None:
            times = self._times[model] = FirstBytes()
        times.add(ttfb_s)


class FirstBytes:
    """The latest times to the first byte, in both orders."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, ttfb_s: float) -> None:
        if len(self._latest) == KEPT:
            del self._sorted[bisect_left(self._sorted, self._latest.popleft())]
        self._latest.append(ttfb_s)
        insort(self._sorted, ttfb_s)

    def slow(self) -> float | None:
        """What all but a twentieth stay below."""
        count = len(self._sorted)
        return self._sorted[count - 1 - count // 20] if count >= ENOUGH else None
