"""The metrics page: what requests and events have told, and what the gateway's parts say when they are asked."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from app.generation import Call, Usage
from app.telemetry.base import Event
from app.telemetry.metrics import families as f
from app.telemetry.metrics.calls import Calls
from app.telemetry.metrics.events import Events
from app.telemetry.metrics.families import GROUPS, Family
from app.telemetry.metrics.requests import Requests
from app.telemetry.metrics.tallies import Count, Labels, Reading, Spread, metric_of
from app.telemetry.record import Record

OPENMETRICS = "application/openmetrics-text"
"""Who accepts this format gets exemplars too: with some observations, the trace of a request that made them."""

TRIES = 5
"""Another thread reads what the loop's is about to change. It sees that when it happens, and looks again."""

Read = Callable[[], Iterable[Reading]]


class Metrics:
    """Told by the event loop's thread. The page may be made by any."""

    def __init__(self, version: str = "", engine: str = "", policy: str = "") -> None:
        self._build = Reading(f.BUILD, 1, (version, engine, policy))
        self._requests = Requests()
        self._calls = Calls(policy)
        self._events = Events()
        lag, delay = Spread(f.LOOP_LAG), Spread(f.EVENT_DELAY)
        self._lag, self._delay = lag.of(), delay.of()
        self._spans_dropped = Count(f.SPANS_DROPPED, [()])
        self._own: tuple[Count | Spread, ...] = (lag, delay, self._spans_dropped)
        self._read: list[Read] = [self._requests.readings, self._events.readings]
        self._models: Callable[[], Iterable[str]] = lambda: ()
        self._registry = registry = CollectorRegistry()
        for kind in (ProcessCollector, PlatformCollector, GCCollector):
            kind(registry=registry)
        registry.register(_Page(self))

    def measure(self, read: Read) -> None:
        """To be asked whenever the page is made, by whichever thread makes it."""
        self._read.append(read)

    def know(self, models: Callable[[], dict[str, int | None]]) -> None:
        """Which models there are now. No other becomes a label."""
        self._models = self._calls.known_models = models

    def began(self, record: Record) -> None:
        self._requests.began(record)

    def ended(self, record: Record) -> None:
        self._requests.ended(record)
        self._calls.ended(record)

    def note(self, event: Event) -> None:
        self._events.note(event)

    def settled(self, call: Call, used: Usage) -> None:
        self._calls.settled(call, used)

    def loop_lag(self, seconds: float) -> None:
        self._lag.add(seconds)

    def event_delay(self, seconds: float) -> None:
        self._delay.add(seconds)

    def spans_dropped(self, spans: int) -> None:
        self._spans_dropped.add(number=spans)

    def page(self, accept: str = "") -> tuple[str, bytes]:
        """Its content type, and the page."""
        if OPENMETRICS in accept:
            page: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return openmetrics.CONTENT_TYPE_LATEST, page
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """In the order of the families; what there is nothing of is left out."""
        for model in list(self._models()):
            self._calls.begin(model)
        found = {metric.name: metric for metric in self._told()}
        found |= {metric.name: metric for metric in self._asked()}
        for families in GROUPS.values():
            for family in families:
                if (metric := found.get(family.name)) is not None and metric.samples:
                    yield metric

    def _told(self) -> Iterator[Metric]:
        yield from self._requests.metrics()
        yield from self._calls.metrics()
        yield from self._events.metrics()
        for tally in self._own:
            yield tally.metric()

    def _asked(self) -> Iterator[Metric]:
        readings: dict[Family, list[tuple[float, Labels]]] = {}
        for family, value, labels in [self._build, *(each for read in self._read for each in _at_once(read))]:
            readings.setdefault(family, []).append((value, labels))
        for family, values in readings.items():
            yield metric_of(family, values)


class _Page(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect()


def _at_once(read: Read) -> list[Reading]:
    for _ in range(TRIES):
        try:
            return list(read())
        except RuntimeError:  # something that was being read has changed its size
            continue
    return list(read())
