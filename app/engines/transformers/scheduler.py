"""The waiting line and the running sequences: first come, first served, and prefix pages given up one by one.

Of `transformers`' scheduler it changes what lets a server stand still or starve (written against 5.23).
"""

import itertools
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from app.engines.transformers.job import Job, News

log = logging.getLogger(__name__)


@dataclass
class Counters:
    """What the thread has done so far. Written by it alone, read by anybody."""

    steps: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    recovered: int = 0
    """Steps that failed and were put right."""


class Sequence(RequestState):  # type: ignore[misc]  # transformers ships no usable types here
    """The manager's own record of a job."""

    job: Job
    news: list[News]

    @classmethod
    def of(cls, job: Job, news: list[News]) -> "Sequence":
        self = cls(request_id=job.id, initial_tokens=list(job.prompt), max_new_tokens=None)
        self.job, self.news = job, news
        return self

    def update_and_check_completion(self, token_id: int, logprob: float | None) -> bool:
        job = self.job
        if job.row.failure is not None:
            log.error("job %s: its token could not be chosen", job.id, exc_info=job.row.failure)
            self.status = RequestStatus.FINISHED
            self.news.append(News(job, None, None, "error"))
            return True
        self.generated_tokens.append(token_id)
        self.tokens_to_process = [token_id]
        job.row.produced.append(token_id)
        logprobs, job.row.logprobs = job.row.logprobs, None
        finish, stop_token = job.ending(token_id)
        self.news.append(News(job, token_id, logprobs, finish, stop_token))
        if finish:
            self.status = RequestStatus.FINISHED
        return finish is not None

    def create_equivalent_initial_request(self) -> "Sequence":
        """The same job, to be begun again with what it has produced as part of its prompt (preemption)."""
        again = Sequence.of(self.job, self.news)
        again.initial_tokens = self.initial_tokens + self.generated_tokens
        again.remaining_prefill_tokens = again.initial_tokens[:]
        again.created_time = self.created_time
        return again

    def to_generation_output(self) -> "Sequence":
        """Nothing is copied: the news say it all."""
        return self


class Scheduler(FIFOScheduler):  # type: ignore[misc]
    """First come, first served."""

    counters: Counters
    page_size: int

    def reset(self) -> None:
        super().reset()
        self.trials: deque[str] = deque()

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        if not self.active_requests:
            # After a preemption the manager lets nobody in until something finishes. If everything running was
            # cancelled instead, nothing ever does, and the line would stand still for good.
            self.block_new_requests = False
        if (trial := self.next_trial()) is not None:
            return self._schedule_alone(trial, token_budget, cache_budget)
        return super().schedule_batch(token_budget, cache_budget)

    def next_trial(self) -> Sequence | None:
        """The sequence to be stepped alone, to learn whether a failed step was its doing."""
        while self.trials:
            found = self.active_requests.get(self.trials[0]) or self.waiting_requests.get(self.trials[0])
            if found is not None:
                return found  # type: ignore[no-any-return]
            self.trials.popleft()  # cancelled meanwhile
        return None

    def _schedule_alone(self, state: Sequence, token_budget: int, cache_budget: int) -> Any:
        leaving: set[str] = set()
        scheduled, starved, fast, queries, keys = self._process_candidates([state], token_budget, cache_budget, leaving)
        self._cleanup_waiting_queue(leaving)
        if not scheduled and starved:
            return None, fast, 0, 0
        return scheduled, fast, queries, keys

    def add_waiting_request(self, state: Sequence) -> None:
        if state.job.row.produced or state.job.started is not None:
            self.counters.preemptions += 1
        super().add_waiting_request(state)

    def _get_waiting_candidates(self) -> list[Sequence]:
        """Those who fit, up to the first that does not: a long prompt is not passed by short ones for ever."""
        free = self._free_blocks()
        candidates: list[Sequence] = []
        for request_id in self.waiting_requests_order:
            state = self.waiting_requests[request_id]
            needed = -(-len(state.remaining_prefill_tokens) // self.page_size)
            if needed > free:
                free += self._give_up(needed - free)
            if needed > free and (candidates or self.active_requests):
                break
            free -= needed
            candidates.append(state)
            if len(candidates) >= self.max_requests_per_batch:
                break
        return candidates

    def _infer_request_tokens(self, state: Sequence, request_ids_to_remove_from_waiting: set[str]) -> list[int]:
        fresh = state.status == RequestStatus.PENDING
        tokens: list[int] = super()._infer_request_tokens(state, request_ids_to_remove_from_waiting)
        job = state.job
        if fresh and job.started is None and state.status != RequestStatus.PENDING:
            job.cached_tokens = state.position_offset
            self.counters.prefix_hits += state.position_offset
        return tokens

    def _schedule_request(self, state: Sequence, *args: Any) -> None:
        super()._schedule_request(state, *args)
        if state.job.started is None:
            state.job.started = time.perf_counter()
            self.counters.prefix_queries += len(state.job.prompt)

    def _try_to_meet_safety_margin(self) -> bool:
        """Keep some pages free for sequences that grow; pages kept for their content go first, the oldest first."""
        total = int(self.cache.num_blocks)
        wanted = int(self.safety_margin * total)
        free = self._free_blocks()
        if free < wanted:
            free += self._give_up(wanted - free)
        self.cache.pool.try_to_free_sectors()
        return free >= wanted

    def _free_blocks(self) -> int:
        cache = self.cache
        return int(cache.compute_free_capacity(relative=True) * int(cache.num_blocks))

    def _give_up(self, blocks: int) -> int:
        """Forget that many pages that nobody holds; the manager itself would forget all of them."""
        given = 0
        for allocator in self.cache.cache_allocators.values():
            ledger = allocator.ledger
            oldest = list(itertools.islice(ledger.cached_blocks, blocks))
            for block in oldest:
                del ledger.cached_blocks[block]
                del ledger.hash_to_block[ledger.block_to_hash.pop(block)]
            self.cache.pool.free_blocks(allocator.index, oldest)
            given = max(given, len(oldest))
        self.cache.pool.try_to_free_sectors()
        return given


SCHEDULER_MAPPING["gllm"] = Scheduler
