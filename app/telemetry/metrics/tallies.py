"""What is counted, as plain numbers: told by one thread, read by any, and turned into metrics when a page is made.

prometheus_client's own counters take a lock each time, which is half a microsecond; a call tells two dozen (`python -m
bench.http_stack`). Here one thread at a time tells each family, so none is needed.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Generic, NamedTuple, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from app.telemetry.metrics.families import Family

Labels = tuple[str, ...]

MOST_KEPT = 1_000
"""Beyond it all are looked up anew."""

K = TypeVar("K")
V = TypeVar("V")


class Reading(NamedTuple):
    """A number that has an owner already: read when the page is made, never counted twice."""

    family: Family
    value: float
    labels: Labels = ()


class Number:
    """One counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Count:
    """Of events, by labels."""

    def __init__(self, family: Family, beginning_with: Iterable[Labels] = ()) -> None:
        """`beginning_with`: those that are 0 before anything happens, so that a rate sees the first event."""
        self.family = family
        self.numbers: dict[Labels, Number] = {labels: Number() for labels in beginning_with}

    def of(self, labels: Labels = ()) -> Number:
        """To be kept by who tells often. It begins with 0."""
        number = self.numbers.get(labels)
        return number if number is not None else self.numbers.setdefault(labels, Number())

    def add(self, labels: Labels = (), number: float = 1.0) -> None:
        self.of(labels).value += number

    def forget(self, labels: Labels) -> None:
        self.numbers.pop(labels, None)

    def metric(self) -> Metric:
        return metric_of(self.family, ((number.value, labels) for labels, number in list(self.numbers.items())))


class Kept(dict[K, V], Generic[K, V]):
    """What those tell who are alike, at hand: found once, by what they have in common."""

    def __init__(self, find: Callable[[K], V]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, key: K) -> V:
        if len(self) >= MOST_KEPT:
            self.clear()
        return self.setdefault(key, self._find(key))


class Bins:
    """One histogram."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        """The latest of each bin."""

    def add(self, value: float, trace_id: str = "") -> None:
        """`trace_id`: of a trace that somebody keeps."""
        place = bisect_left(self.bounds, value)
        self.counts[place] += 1
        self.sum += value
        if trace_id:
            self.exemplars[place] = Exemplar({"trace_id": trace_id}, value, datetime.now(UTC).timestamp())


class Spread:
    """Histograms of one family, by labels."""

    def __init__(self, family: Family, beginning_with: Iterable[Labels] = ()) -> None:
        self.family = family
        self.bins: dict[Labels, Bins] = {labels: Bins(family.bounds) for labels in beginning_with}

    def of(self, labels: Labels = ()) -> Bins:
        """To be kept by who tells often."""
        bins = self.bins.get(labels)
        if bins is None:
            bins = self.bins.setdefault(labels, Bins(self.family.bounds))
        return bins

    def forget(self, labels: Labels) -> None:
        self.bins.pop(labels, None)

    def metric(self) -> Metric:
        family = self.family
        metric = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for labels, bins in list(self.bins.items()):
            counts, total = list(bins.counts), bins.sum
            metric.add_metric(labels, list(_buckets(bins, counts)), total)  # type: ignore[arg-type]  # pairs and triples
        return metric


def _buckets(bins: Bins, counts: list[int]) -> Iterator[tuple[object, ...]]:
    so_far = 0
    for place, count in enumerate(counts):
        so_far += count
        bound = f"{float(bins.bounds[place])}" if place < len(bins.bounds) else "+Inf"
        exemplar = bins.exemplars.get(place)
        yield (bound, so_far) if exemplar is None else (bound, so_far, exemplar)


def metric_of(family: Family, values: Iterable[tuple[float, Labels]]) -> Metric:
    """A counter or a gauge."""
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.text, labels=family.labels)
    for value, labels in values:
        metric.add_metric(labels, value)
    return metric
