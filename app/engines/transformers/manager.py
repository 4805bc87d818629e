"""`transformers`' continuous batching, bent in the few places where a server needs more than a batch script does:

- sampling is ours (`sampling.py`), per sequence;
- an exception costs the sequence that caused it, not the thread (`Scheduler.trials`);
- the waiting line is first come, first served, and prefix pages are given up one by one, oldest first;
- stopping and counting happen where the token is born, so that no step is wasted on a finished sequence.

This, `scheduler.py` and `attention.py` are the files that know its inside (written against 5.23).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import RequestStatus

from app.engines.transformers import attention, sampling
from app.engines.transformers.job import Job, News
from app.engines.transformers.scheduler import Counters, Scheduler, Sequence

log = logging.getLogger(__name__)

MAX_TRIALS = 3
"""How often a sequence may be in a step that fails, though it passes alone, before it is given up."""


@dataclass(frozen=True)
class Limits:
    """How much may go on at once."""

    max_batch_tokens: int
    max_sequences: int
    num_blocks: int | None  # None: as many as the device's memory holds
    page_size: int


class _Router(OutputRouter):  # type: ignore[misc]
    """Where the manager drops its results. Ours travel as news at the end of each step; only failures come here."""

    def deliver_batch(self, outputs: list[Sequence]) -> None:
        pass

    def fail_and_deliver(self, state: Sequence, error: Exception) -> None:
        state.status = RequestStatus.FAILED
        state.news.append(News(state.job, None, None, "error"))


class Manager(ContinuousBatchingManager):  # type: ignore[misc]
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
        self._open: dict[str, Job] = {}
        """All that have not ended. The manager forgets whom it had taken from the line when it is told to stop."""
        self._step_tokens = 0
        self.batch_processor = self._create_batch_processor()

    @property
    def scheduler(self) -> Scheduler:
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
        self._open[job.id] = job
        self.input_queue.put_nowait(Sequence.of(job, self._news))
        self._wake_up_loop.set()

    def cancel(self, job: Job) -> None:
        self._open.pop(job.id, None)
        self.cancel_request(job.id)

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
            told = {news.job.id for news in self._news if news.finish}
            forgotten = [job for id_, job in list(self._open.items()) if id_ not in told]
            self._news += [News(job, None, None, "error") for job in forgotten]
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
            for each in news:
                if each.finish:
                    self._open.pop(each.job.id, None)
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
