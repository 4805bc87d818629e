"""The batch: one thread that steps the model, over `transformers`' continuous batching.

Three things meet here. `Job` is one sequence to generate, as the server sees it. `Batch` is what the server holds:
submit, cancel, and the news of each step, handed to the event loop in one call. Below it stand the manager's parts,
each bent in the few places where a server needs more than a batch script does:

- sampling is ours (`sampling.py`), per sequence;
- an exception costs the sequence that caused it, not the thread (`_Scheduler.trials`);
- the waiting line is first come, first served, and prefix pages are given up one by one, oldest first;
- stopping and counting happen where the token is born, so that no step is wasted on a finished sequence.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from app.engines.transformers import attention, sampling
from app.engines.transformers.sampling import Logprobs, Row, Sampling

log = logging.getLogger(__name__)

Finish = Literal["stop", "length", "error"]

MAX_TRIALS = 3
"""How often a sequence may be in a step that fails, though it passes alone, before it is given up."""


@dataclass(eq=False)
class Job:
    """One sequence to generate. The batch thread writes to it until its last `News`; then nobody does."""

    id: str
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    eos: frozenset[int]  # end without a reason given
    stop_ids: frozenset[int]  # end, and are named as the reason
    arrived: float = field(default_factory=time.perf_counter)
    started: float | None = None
    cached_tokens: int = 0
    row: Row = field(init=False)
    trials: int = 0

    def __post_init__(self) -> None:
        self.row = Row(self.sampling, self.prompt)

    def ending(self, token: int) -> tuple[Finish | None, int | None]:
        """Whether the sequence ends with this token, just produced, and which stop token is to be named."""
        produced = len(self.row.produced)
        if produced >= self.sampling.min_tokens:
            if token in self.eos:
                return "stop", None
            if token in self.stop_ids:
                return "stop", token
        return ("length", None) if produced >= self.max_tokens else (None, None)


class News(NamedTuple):
    """What a step brought for one job: a token, or the end without one (`error`)."""

    job: Job
    token: int | None
    logprobs: Logprobs | None
    finish: Finish | None
    stop_token: int | None = None


@dataclass(frozen=True)
class Limits:
    """How much may go on at once."""

    max_batch_tokens: int
    max_sequences: int
    num_blocks: int | None  # None: as many as the device's memory holds
    page_size: int


@dataclass
class Counters:
    """What the thread has done so far. Written by it alone, read by anybody."""

    steps: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    recovered: int = 0
    """Steps that failed and were put right."""


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
        self._manager = _Manager(model, limits, self.counters, on_news, on_death)

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
        self._manager.cancel_request(job.id)

    def stop(self) -> None:
        """End the thread. What still runs ends with an error."""
        if not self.alive:
            return
        self._manager.stop(block=True, timeout=10.0, hard_stop=True, keep_for_next_session=True)


class _Sequence(RequestState):  # type: ignore[misc]  # transformers ships no usable types here
    """The manager's own record of a job."""

    job: Job
    news: list[News]

    @classmethod
    def of(cls, job: Job, news: list[News]) -> "_Sequence":
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

    def create_equivalent_initial_request(self) -> "_Sequence":
        """The same job, to be begun again with what it has produced as part of its prompt (preemption)."""
        again = _Sequence.of(self.job, self.news)
        again.initial_tokens = self.initial_tokens + self.generated_tokens
        again.remaining_prefill_tokens = again.initial_tokens[:]
        again.created_time = self.created_time
        return again

    def to_generation_output(self) -> "_Sequence":
        """Nothing is copied: the news say it all."""
        return self


class _Router(OutputRouter):  # type: ignore[misc]
    """Where the manager drops its results. Ours travel as news at the end of each step; only failures come here."""

    def deliver_batch(self, outputs: list[_Sequence]) -> None:
        pass

    def fail_and_deliver(self, state: _Sequence, error: Exception) -> None:
        state.status = RequestStatus.FAILED
        state.news.append(News(state.job, None, None, "error"))


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
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

    def next_trial(self) -> _Sequence | None:
        """The sequence to be stepped alone, to learn whether a failed step was its doing."""
        while self.trials:
            found = self.active_requests.get(self.trials[0]) or self.waiting_requests.get(self.trials[0])
            if found is not None:
                return found  # type: ignore[no-any-return]
            self.trials.popleft()  # cancelled meanwhile
        return None

    def _schedule_alone(self, state: _Sequence, token_budget: int, cache_budget: int) -> Any:
        leaving: set[str] = set()
        scheduled, starved, fast, queries, keys = self._process_candidates([state], token_budget, cache_budget, leaving)
        self._cleanup_waiting_queue(leaving)
        if not scheduled and starved:
            return None, fast, 0, 0
        return scheduled, fast, queries, keys

    def add_waiting_request(self, state: _Sequence) -> None:
        if state.job.row.produced or state.job.started is not None:
            self.counters.preemptions += 1
        super().add_waiting_request(state)

    def _get_waiting_candidates(self) -> list[_Sequence]:
        """Those who fit, up to the first that does not: a long prompt is not passed by short ones for ever."""
        free = self._free_blocks()
        candidates: list[_Sequence] = []
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

    def _infer_request_tokens(self, state: _Sequence, request_ids_to_remove_from_waiting: set[str]) -> list[int]:
        fresh = state.status == RequestStatus.PENDING
        tokens: list[int] = super()._infer_request_tokens(state, request_ids_to_remove_from_waiting)
        job = state.job
        if fresh and job.started is None and state.status != RequestStatus.PENDING:
            job.cached_tokens = state.position_offset
            self.counters.prefix_hits += state.position_offset
        return tokens

    def _schedule_request(self, state: _Sequence, *args: Any) -> None:
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


SCHEDULER_MAPPING["gllm"] = _Scheduler


class _Manager(ContinuousBatchingManager):  # type: ignore[misc]
    """The manager, made to survive a failing step and to report every step at once."""

    def __init__(
        self,
        model: Any,
        limits: Limits,
        counters: Counters,
        on_news: Callable[[list[News], int], None],
        on_death: Callable[[], None],
    ) -> None:
        self.attention: attention.PagedAttention | None = None
        self.ended = False
        super().__init__(
            model=model,
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=limits.page_size,
                num_blocks=limits.num_blocks,
                max_batch_tokens=limits.max_batch_tokens,
                max_requests_per_batch=min(limits.max_sequences, limits.max_batch_tokens),
                scheduler_type="gllm",
                safety_margin=0.05,
                # each row has its own rules, decided in Python: nothing of it can be captured in a graph or run ahead
                use_cuda_graph=False,
                use_async_batching=False,
            ),
        )
        self.output_router = _Router()
        self.counters = counters
        self._on_news, self._on_death = on_news, on_death
        self._news: list[News] = []
        self._step_tokens = 0
        self.batch_processor = self._create_batch_processor()

    @property
    def scheduler(self) -> _Scheduler:
        return self.batch_processor.scheduler  # type: ignore[no-any-return]

    @property
    def cache(self) -> Any:
        return self.batch_processor.cache

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Our own attention where it fits; else the manager's choice, flash attention before the rest."""
        if attention.fits(model):
            self.attention = attention.register()
            model.set_attn_implementation(attention.NAME)
        else:
            super().switch_to_cb_friendly_attn(model, auto_switch_to_flash)

    def submit(self, job: Job) -> None:
        """Never blocks: the server has counted already whether there is room."""
        self.input_queue.put_nowait(_Sequence.of(job, self._news))
        self._wake_up_loop.set()

    # --- in the batch thread --------------------------------------------------------------------------------------

    def _create_batch_processor(self) -> Any:
        processor = super()._create_batch_processor()
        processor.model_runner._sample = self._sample
        processor.scheduler.counters = self.counters
        processor.scheduler.page_size = self.continuous_batching_config.page_size
        return processor

    def _run_generation_loop(self) -> None:
        threading.current_thread().name = "batch"
        try:
            super()._run_generation_loop()
        finally:
            self.ended = True  # before anybody is told: who hears of it and looks must find it so
            self._step_tokens = 0
            self._report()
            self._on_death()

    def _generation_loop_body(self, batch_processor: Any, bootstrapping: bool) -> bool:
        self._step_tokens = 0
        try:
            going_on: bool = super()._generation_loop_body(batch_processor, bootstrapping)
            if self._step_tokens and self.scheduler.trials:
                self.scheduler.trials.popleft()  # it was not this one
        except Exception as error:
            going_on = True
            self._recover(batch_processor, error)
        self._report()
        return going_on

    def _report(self) -> None:
        if self._news or self._step_tokens:
            news = self._news[:]
            self._news.clear()
            self._on_news(news, self._step_tokens)

    def _generation_step(self) -> None:
        spans = []
        processor = self.batch_processor
        start = 0
        for scheduled in processor.inputs_and_outputs.requests_in_batch:
            queries = scheduled.query_length
            if self.attention is not None:
                allocator = self.cache.cache_allocators[FULL_ATTENTION]
                past = scheduled.state.position_offset - queries
                spans.append(allocator.span(scheduled.state.request_id, start, queries, past))
            start += queries
        if self.attention is not None:
            page_size = self.continuous_batching_config.page_size
            self.attention.plan = attention.Plan(spans, page_size, self.model.dtype, self.model.device)
        self._step_tokens = start
        self.counters.steps += 1
        if self.model.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # inputs are written on this stream, and read on another
        super()._generation_step()

    def _sample(self, scores: Tensor, output_ids: Tensor) -> None:
        """In place of the manager's own, which knows one way of sampling for all. Called without gradients."""
        in_batch = self.batch_processor.inputs_and_outputs.requests_in_batch
        rows = [each.state.job.row for each in in_batch if each.has_new_token]
        if rows:
            output_ids[0, : len(rows)].copy_(sampling.choose(scores[0, : len(rows)], rows))

    def _recover(self, processor: Any, error: Exception) -> None:
        """A step failed: all who were in it go back to their last good token and are tried alone. Who fails is out."""
        log.error("a step of the batch failed", exc_info=error)
        scheduler = self.scheduler
        alone = scheduler.next_trial()
        suspects = [alone] if alone is not None else list(scheduler.active_requests.values())
        guilty = suspects if len(suspects) == 1 else [each for each in suspects if each.job.trials >= MAX_TRIALS]
        if not suspects:
            raise error  # nobody was running: the fault is ours, and it would only come again
        finished = {news.job.id for news in self._news if news.finish}
        for state in list(scheduler.active_requests.values()):
            scheduler.finish_request(state.request_id)
            if state in guilty or state.request_id in finished:
                continue
            again = state.create_equivalent_initial_request()
            again.job.started = again.job.started or time.perf_counter()
            scheduler.add_waiting_request(again)
            scheduler.waiting_requests_order.pop()
            scheduler.waiting_requests_order.appendleft(again.request_id)
        for state in guilty:
            scheduler.waiting_requests.pop(state.request_id, None)
            if state.request_id not in finished:
                self.output_router.fail_and_deliver(state, error)
        scheduler.waiting_requests_order = deque(
            each for each in scheduler.waiting_requests_order if each in scheduler.waiting_requests
        )
        scheduler.block_new_requests = False
        scheduler.trials = deque(each.request_id for each in suspects if each.request_id in scheduler.waiting_requests)
        for state in suspects:
            state.job.trials += 1
        self.counters.recovered += 1
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
