"""What the engine tells Prometheus: vLLM's names and labels, so that one dashboard serves both."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_FIRST_TOKEN = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_STEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_LABELS = ("model_name", "engine")


class Gauges(Protocol):
    """What is read at the moment of a scrape."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def cache_usage(self) -> float: ...
    @property
    def prefix_queries(self) -> int: ...
    @property
    def prefix_hits(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def cache_shape(self) -> dict[str, str]: ...


class Metrics:
    def __init__(self, model: str, context: int, gauges: Gauges) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_Scraped(model, gauges))
        tokens = tuple(_one_two_five(context))

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, _LABELS, registry=self._registry).labels(model, "0")

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            made = Histogram(name, text, _LABELS, buckets=tuple(buckets), registry=self._registry)
            return made.labels(model, "0")

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of the requests that began.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens produced.")
        ended = Counter(
            "vllm:request_success",
            "Sequences by how they ended.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        self.ended = {reason: ended.labels(model, "0", reason) for reason in ("stop", "length", "abort", "error")}
        self.first_token = histogram("vllm:time_to_first_token_seconds", "From arrival to first token.", _FIRST_TOKEN)
        self.between_tokens = histogram("vllm:inter_token_latency_seconds", "From token to token.", _BETWEEN)
        self.whole = histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", _WHOLE)
        self.queued = histogram("vllm:request_queue_time_seconds", "From arrival to the first step.", _FIRST_TOKEN)
        self.prompt_sizes = histogram("vllm:request_prompt_tokens", "Prompt tokens of a sequence.", tokens)
        self.generation_sizes = histogram("vllm:request_generation_tokens", "Tokens produced for a sequence.", tokens)
        self.spans_dropped = Counter(
            "gllm_spans_dropped", "Spans that the collector of traces did not take.", registry=self._registry
        )
        self.step_tokens = histogram("vllm:iteration_tokens_total", "Tokens in a step of the engine.", _STEP)

    def page(self) -> bytes:
        return generate_latest(self._registry)


class _Scraped(Collector):
    """Numbers that have an owner already: read when asked for, never counted twice."""

    def __init__(self, model: str, gauges: Gauges) -> None:
        self._model, self._gauges = model, gauges

    def collect(self) -> Iterator[Metric]:
        gauges = self._gauges
        labels = [self._model, "0"]
        for name, text, value in (
            ("vllm:num_requests_running", "Sequences in the batch.", gauges.running),
            ("vllm:num_requests_waiting", "Sequences waiting for a place in the batch.", gauges.waiting),
            ("vllm:kv_cache_usage_perc", "The part of the cache in use (1 = all of it).", gauges.cache_usage),
        ):
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            gauge.add_metric(labels, value)
            yield gauge
        for name, text, count in (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", gauges.prefix_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", gauges.prefix_hits),
            ("vllm:num_preemptions", "Sequences put back to make room for others.", gauges.preemptions),
        ):
            counter = CounterMetricFamily(name, text, labels=_LABELS)
            counter.add_metric(labels, count)
            yield counter
        info = InfoMetricFamily("vllm:cache_config", "How the cache is laid out.", labels=("engine",))
        info.add_metric(["0"], gauges.cache_shape)
        yield info


def _one_two_five(limit: int) -> Iterator[float]:
    size = 1
    while size <= limit:
        yield from (each for each in (size, 2 * size, 5 * size) if each <= limit)
        size *= 10
