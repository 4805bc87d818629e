"""The batch: one thread that steps the model, as the server holds it. Submit, cancel, and the news of each step, handed
to the event loop in one call.
"""

from collections.abc import Callable
from typing import Any

from app.engines.transformers.job import Job, News
from app.engines.transformers.manager import Limits, Manager
from app.engines.transformers.scheduler import Counters


class Batch:
    """The running model. `on_news` and `on_death` are called in the batch thread: they hand over and return."""

    def __init__(
        self,
        model: Any,
        limits: Limits,
        on_news: Callable[[list[News], int], None],
        on_death: Callable[[], None],
    ) -> None:
        self.counters = Counters()
        self._manager = Manager(model, limits, self.counters, on_news, on_death)

    @property
    def capacity(self) -> int:
        """How many tokens the cache holds."""
        cache = self._manager.cache
        return int(cache.num_blocks) * int(self._manager.continuous_batching_config.page_size)

    @property
    def alive(self) -> bool:
        return bool(self._manager.is_running()) and not self._manager.ended

    @property
    def running(self) -> int:
        return len(self._manager.scheduler.active_requests)

    @property
    def waiting(self) -> int:
        manager = self._manager
        return len(manager.scheduler.waiting_requests) + int(manager.input_queue.qsize())

    @property
    def usage(self) -> float:
        """The part of the cache that sequences hold. Pages kept for their content count as free, as in vLLM."""
        cache = self._manager.cache
        kept = sum(len(each.ledger.cached_blocks) * each.bytes_per_block for each in cache.cache_allocators.values())
        total = cache.num_sectors * cache.bytes_per_sector
        free: float = cache.compute_free_capacity(relative=False)
        return float(max(0.0, 1.0 - (free + kept) / total))

    def start(self) -> None:
        self._manager.start()

    def submit(self, job: Job) -> None:
        self._manager.submit(job)

    def cancel(self, job: Job) -> None:
        """Take effect at the next step: the sequence leaves the batch, its pages return, and no news follow."""
        self._manager.cancel(job)

    def stop(self) -> None:
        """End the thread. What still runs ends with an error."""
        if not self.alive:
            return
        self._manager.stop(block=True, timeout=10.0, hard_stop=True, keep_for_next_session=True)
