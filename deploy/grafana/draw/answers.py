"""What a Prometheus answers to the queries of a dashboard, over a stretch of time."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

from deploy.grafana.panel import RATE, Board, Panel, Query


@dataclass(frozen=True)
class Span:
    start: float
    end: float
    step_s: float
    rate_s: float
    """What stands for $__rate_interval."""


@dataclass(frozen=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]
    """Time and value. Where there was none, there is a gap."""
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    lines: Sequence[Line]
    exemplars: Sequence[tuple[float, float]] = ()


class Asker:
    """Leaving its block closes its connections."""

    def __init__(self, url: str, span: Span) -> None:
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=60)
        self.span = span

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def board(self, board: Board) -> dict[str, Answer]:
        """By the panel's title."""
        return {panel.title: self._panel(panel) for panel in board.panels}

    def _panel(self, panel: Panel) -> Answer:
        lines = [line for query in panel.queries for line in self._lines(query)]
        marked = [point for query in panel.queries if query.exemplars for point in self._exemplars(query)]
        return Answer(lines, sorted(set(marked)))

    def _lines(self, query: Query) -> list[Line]:
        span = self.span
        found = self._ask("query_range", query, start=span.start, end=span.end, step=span.step_s)["result"]
        lines = []
        for series in found:
            points = [(float(at), float(text)) for at, text in series["values"]]
            labels: dict[str, str] = series["metric"]
            numbers = [(at, value) for at, value in points if abs(value) < float("inf")]
            if numbers:
                lines.append(Line(_named(query, labels), numbers, labels))
        return lines

    def _exemplars(self, query: Query) -> list[tuple[float, float]]:
        found = self._ask("query_exemplars", query, start=self.span.start, end=self.span.end)
        each = [exemplar for series in found for exemplar in series["exemplars"]]
        return [(float(one["timestamp"]), float(one["value"])) for one in each]

    def _ask(self, what: str, query: Query, **parameters: float) -> Any:
        asked = everything(query.expr, self.span.rate_s)
        answer = self._http.get(f"/api/v1/{what}", params={"query": asked, **parameters}).json()
        if answer["status"] != "success":
            raise ValueError(f"{asked}: {answer.get('error')}")
        return answer["data"]


def everything(expr: str, rate_s: float) -> str:
    """As Grafana would ask it with nothing chosen: all models, all tenants, all instances."""
    return re.sub(r'"\$\w+"', '".*"', expr.replace(RATE, f"{rate_s:g}s"))


def _named(query: Query, labels: Mapping[str, str]) -> str:
    if not query.legend:
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), query.legend)
