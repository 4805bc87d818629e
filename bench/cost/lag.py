"""How late a gateway's event loop was, as its own metric has it (`gllm_event_loop_lag_seconds`)."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.request import ProxyHandler, build_opener

from bench.cost.standing import Standing

BUCKET = re.compile(r'^gllm_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', re.MULTILINE)

Buckets = Mapping[float, float]
"""How many were not above each bound."""


class Lag:
    """Over all stretches in which it was watched."""

    def __init__(self) -> None:
        self._seen: dict[float, float] = {}

    @contextmanager
    def watched(self, standing: Standing) -> Iterator[None]:
        before = _buckets(standing)
        yield
        for bound, count in _buckets(standing).items():
            self._seen[bound] = self._seen.get(bound, 0) + count - before.get(bound, 0)

    @property
    def beats(self) -> float:
        return self._seen.get(math.inf, 0)

    def p99_ms(self) -> float:
        """The bound of the bucket in which it is."""
        return rank(self._seen, 0.99) * 1e3


def rank(buckets: Buckets, part: float) -> float:
    wanted = buckets.get(math.inf, 0) * part
    return next((bound for bound, count in sorted(buckets.items()) if count >= wanted), math.nan)


def _buckets(standing: Standing) -> Buckets:
    url = f"http://127.0.0.1:{standing.metrics_port}/metrics"
    with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
        page: str = answer.read().decode()
    return {float(bound): float(count) for bound, count in BUCKET.findall(page)}
