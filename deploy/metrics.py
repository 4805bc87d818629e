"""All metrics that our processes make, known without starting any: for their document, and for the checks that no
dashboard and no rule asks for what nobody makes.

    python -m deploy.metrics

writes docs/metrics.md anew.
"""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.engines.transformers.metrics import Metrics as EngineMetrics
from app.telemetry.metrics.families import GROUPS, Family, Kind
from app.telemetry.prometheus import Metrics

PLACE = "docs/metrics.md"
WRITTEN_BY = "`make docs` writes this file from `app/telemetry/metrics/families.py` and the engine's own page."

ENGINE = "The Transformers engine"
PROCESS = "The process"
KINDS: dict[str, Kind] = {"counter": "counter", "gauge": "gauge", "histogram": "histogram"}

HEAD = """\
# Metrics

`/metrics` of the gateway is answered to this machine and to admins' keys. With `METRICS_PORT` the same page is served
by a listener of its own, from another thread, so that it is answered while the gateway is busy; it belongs into a
network that only Prometheus reaches. Engines have a `/metrics` page each.

- Whoever accepts `application/openmetrics-text` also gets exemplars: with observations of latencies, the `trace_id` of
  a sampled request that made them.
- Labels are bounded. A `model` that is served, and a `tenant` of the file, stand for themselves up to a hundred of
  each; whatever comes beyond, or is unknown, is `other`; what was refused before it was known is `none`. Words that
  only clients choose, as methods and paths, are `other` unless they are known. Request ids are in logs and traces only.
- Counters and histograms of the known labels are there from the start, with 0, so that a rate sees the first event.
- Numbers of states are read when the page is made: a replica that was removed leaves the page.
- A histogram NAME has the series `NAME_bucket`, `NAME_sum` and `NAME_count`.
"""


class _Still:
    """An engine that does nothing."""

    running = waiting = prefix_queries = prefix_hits = preemptions = 0
    cache_usage = 0.0
    cache_shape = {"block_size": "", "num_gpu_blocks": ""}  # noqa: RUF012  # nobody changes it


def groups() -> dict[str, tuple[Family, ...]]:
    """By title, in the order of the document."""
    process = (each for each in _families(Metrics().page()[1]) if each.name.startswith(("process_", "python_")))
    engine = _families(EngineMetrics("model", 1, _Still()).page())
    return {**GROUPS, PROCESS: tuple(process), ENGINE: tuple(engine)}


def families() -> dict[str, Family]:
    """By name."""
    return {family.name: family for group in groups().values() for family in group}


def series() -> dict[str, Family]:
    """By each name that a query may ask for: `x_total`, `x_bucket`, `x_sum`, `x_count`, or `x` itself."""
    return {name: family for family in families().values() for name in family.series}


def page() -> str:
    lines = [HEAD.rstrip()]
    for title, group in groups().items():
        lines += ["", f"## {title}", "", "| Metric | Type | Labels | |", "| --- | --- | --- | --- |"]
        lines += [_row(family) for family in group]
    return "\n".join([*lines, "", f"*{WRITTEN_BY}*"]) + "\n"


def _row(family: Family) -> str:
    name = family.name if family.kind == "histogram" else family.series[0]
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{name}` | {family.kind} | {labels} | {family.text} |"


def _families(text: bytes) -> Iterator[Family]:
    for metric in text_string_to_metric_families(text.decode()):
        yield Family(metric.name, KINDS[metric.type], metric.documentation, _labels(metric))


def _labels(metric: Metric) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for sample in metric.samples for label in sample.labels if label != "le"))


def write(checkout: Path) -> None:
    (checkout / PLACE).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path.cwd())
