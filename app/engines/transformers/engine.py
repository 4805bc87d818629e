"""The front desk: lets work in while there is room, and brings each request the news of its own sequences.

Everything here runs on the event loop; the batch thread reaches it through one call a step.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime

from app.engines.transformers.batch import Batch
from app.engines.transformers.job import Job, News
from app.engines.transformers.manager import Limits
from app.engines.transformers.metrics import Metrics
from app.engines.transformers.model import Loaded
from app.engines.transformers.sampling import Sampling
from app.errors import Draining, EngineLacks, QueueFull, Unforeseen

MAX_RETRY_S = 60


class Feed:
    """The news of one request's sequences, in order."""

    def __init__(self) -> None:
        self._news: list[News] = []
        self._there = asyncio.Event()

    def put(self, news: News) -> None:
        self._news.append(news)
        self._there.set()

    async def next(self) -> list[News]:
        """All that has come since the last call; waits for the first."""
        await self._there.wait()
        self._there.clear()
        news, self._news = self._news, []
        return news


class Engine:
    def __init__(
        self, model: Loaded, name: str, limits: Limits, max_queue: int, *, aliases: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.name = name
        self.names = tuple(dict.fromkeys((name, *aliases)))
        """What it answers to."""
        self.created = int(datetime.now(UTC).timestamp())
        self._limits = limits
        self._places = limits.max_sequences + max_queue
        self._taken = 0
        self._draining = False
        self._dead = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._feeds: dict[str, tuple[Job, Feed]] = {}
        self._mean_s = 1.0
        self._embedder = ThreadPoolExecutor(1, thread_name_prefix="embed")
        self._batch = Batch(model.network, limits, self._on_news, self._on_death)
        self.context = min(model.context, self._batch.capacity)
        self.metrics = Metrics(name, self.context, self)

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Called on the loop that will serve."""
        self._loop = asyncio.get_running_loop()
        self._batch.start()

    async def warm_up(self) -> None:
        """One short sequence through everything, so that the first client does not pay for it."""
        jobs = [Job("warm-up", [0] * min(16, self.context - 2), Sampling(), 2, frozenset(), frozenset())]
        async with self.generate(jobs) as feed:
            while not any(news.finish for news in await feed.next()):
                pass

    @property
    def healthy(self) -> bool:
        return self._batch.alive and not self._dead and not self._draining

    async def drain(self, grace_s: float) -> None:
        """Take nothing new; give what runs its time; then end it."""
        self._draining = True
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s
        while self._taken and loop.time() < until and self._batch.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # only while ending; an event would have to be set all day

    async def stop(self) -> None:
        self._draining = True
        await asyncio.to_thread(self._batch.stop)
        self._embedder.shutdown(wait=False, cancel_futures=True)

    # --- work -----------------------------------------------------------------------------------------------------

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Places for `count` sequences, or the reason why there are none."""
        if self._dead:
            raise Unforeseen("The engine has stopped working and must be restarted.")
        if self._draining:
            raise Draining("This engine is shutting down.", retry_after=1)
        if self._taken + count > self._places:
            raise QueueFull("Too many requests are in this engine already.", retry_after=self._retry_after())
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count

    @asynccontextmanager
    async def generate(self, jobs: Sequence[Job]) -> AsyncIterator[Feed]:
        """Put sequences into the batch. Leaving the block takes out what has not finished."""
        feed = Feed()
        with self.admit(len(jobs)):
            try:
                for job in jobs:
                    self._feeds[job.id] = job, feed
                    self._batch.submit(job)
                yield feed
            finally:
                for job in jobs:
                    self.cancel(job)

    def cancel(self, job: Job) -> None:
        """Take a sequence out of the batch. Nothing happens if it has ended."""
        if self._feeds.pop(job.id, None) is not None:
            self._batch.cancel(job)
            self.metrics.ended["abort"].inc()

    def stopped(self, job: Job) -> None:
        """The text ended with a stop string, which the batch cannot see."""
        if self._feeds.pop(job.id, None) is not None:
            self._batch.cancel(job)
            self._ended(job, "stop")

    async def embed(self, prompts: list[list[int]]) -> list[list[float]]:
        loop = asyncio.get_running_loop()
        vectors = []
        with self.admit(1):
            for prompt in prompts:
                vector = await loop.run_in_executor(self._embedder, self.model.embed, prompt)
                if vector is None:
                    raise EngineLacks("This model shows no hidden states to make embeddings of.")
                vectors.append([float(each) for each in vector.tolist()])
        return vectors

    def _retry_after(self) -> float:
        """When a place is likely to be free: one of those running ends every so often."""
        return min(MAX_RETRY_S, max(1.0, self._mean_s / max(1, self._batch.running)))

    # --- news -----------------------------------------------------------------------------------------------------

    def _on_news(self, news: list[News], step_tokens: int) -> None:
        """In the batch thread, once a step."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._spread, news, step_tokens)

    def _on_death(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._bury)

    def _spread(self, news: list[News], step_tokens: int) -> None:
        now = time.perf_counter()
        metrics = self.metrics
        produced = 0
        for each in news:
            job = each.job
            if job.id not in self._feeds:
                continue  # nobody waits for it any more
            _, feed = self._feeds[job.id]
            if each.token is not None:
                produced += 1
                if job.last_token is None:
                    job.first_token = now
                    self._began(job, now)
                else:
                    metrics.between_tokens.observe(now - job.last_token)
                job.last_token = now
            if each.finish:
                del self._feeds[job.id]
                self._ended(job, each.finish)
            feed.put(each)
        if produced:
            metrics.generation_tokens.inc(produced)
        if step_tokens:
            metrics.step_tokens.observe(step_tokens)

    def _began(self, job: Job, now: float) -> None:
        metrics = self.metrics
        metrics.first_token.observe(now - job.arrived)
        metrics.queued.observe((job.started or now) - job.arrived)
        metrics.prompt_tokens.inc(len(job.prompt))
        metrics.prompt_sizes.observe(len(job.prompt))

    def _ended(self, job: Job, reason: str) -> None:
        lasted = time.perf_counter() - job.arrived
        self._mean_s += 0.1 * (lasted - self._mean_s)
        metrics = self.metrics
        metrics.ended[reason].inc()
        metrics.whole.observe(lasted)
        metrics.generation_sizes.observe(len(job.row.produced))

    def _bury(self) -> None:
        """The thread is gone: whoever still waits must not wait for ever."""
        self._dead = not self._draining
        for job, feed in list(self._feeds.values()):
            del self._feeds[job.id]
            self._ended(job, "error")
            feed.put(News(job, None, None, "error"))

    # --- what a scrape reads --------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        return self._batch.running

    @property
    def waiting(self) -> int:
        return self._batch.waiting

    @property
    def cache_usage(self) -> float:
        return self._batch.usage

    @property
    def prefix_queries(self) -> int:
        return self._batch.counters.prefix_queries

    @property
    def prefix_hits(self) -> int:
        return self._batch.counters.prefix_hits

    @property
    def preemptions(self) -> int:
        return self._batch.counters.preemptions

    @property
    def cache_shape(self) -> dict[str, str]:
        page = self._limits.page_size
        return {"block_size": str(page), "num_gpu_blocks": str(self._batch.capacity // page)}
