"""What a dashboard consists of, and the JSON that Grafana reads. No more of Grafana's words than are used here."""

from dataclasses import dataclass, field
from typing import Any, Literal

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
RATE = "$__rate_interval"

GREEN, AMBER, RED = "green", "orange", "red"


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    """Says what is good."""
    text: str
    """What it is, and what to do if it is not good."""
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    width: int = 8
    bounds: tuple[float, float] | None = None
    """From where it is a worry, and from where it is bad; the other way round where more is better."""
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    name: str
    query: str


@dataclass(frozen=True)
class Board:
    uid: str
    title: str
    text: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = field(default=())

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)


def board_json(board: Board, others: tuple[Board, ...]) -> dict[str, Any]:
    return {
        "uid": board.uid,
        "title": f"gllm: {board.title}",
        "description": board.text,
        "tags": ["gllm"],
        "editable": False,
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "links": [_link(each) for each in others if each is not board],
        "templating": {"list": [_source_variable(), *map(_variable, board.variables)]},
        "panels": _panels(board),
    }


def _link(board: Board) -> dict[str, Any]:
    return {"title": board.title, "type": "link", "url": f"/d/{board.uid}", "keepTime": True, "includeVars": True}


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": variable.query, "refId": variable.name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels(board: Board) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    top = 0
    for row in board.rows:
        made.append(
            {
                "type": "row",
                "id": len(made) + 1,
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
            }
        )
        top += 1
        left, height = 0, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                left, top = 0, top + height
            height = 4 if panel.kind == "stat" else 8
            place = {"h": height, "w": panel.width, "x": left, "y": top}
            made.append(_panel(panel, len(made) + 1, place))
            left += panel.width
        top += height
    return made


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "id": number,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(each, chr(65 + index), panel.kind) for index, each in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel.kind),
    }


def _target(query: Query, letter: str, kind: str) -> dict[str, Any]:
    return {
        "refId": letter,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "exemplar": query.exemplars,
        "format": "heatmap" if kind == "heatmap" else "time_series",
        "instant": kind == "stat",
        "range": kind != "stat",
        "datasource": SOURCE,
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    custom = {"fillOpacity": 10, "showPoints": "never", "stacking": {"mode": "normal" if panel.stacked else "none"}}
    if panel.bounds is not None:
        custom["thresholdsStyle"] = {"mode": "line"}
    return {"unit": panel.unit, "min": 0, "custom": custom, "thresholds": _thresholds(panel.bounds)}


def _thresholds(bounds: tuple[float, float] | None) -> dict[str, Any]:
    if bounds is None:
        return {"mode": "absolute", "steps": [{"color": GREEN, "value": None}]}
    worry, bad = bounds
    colours = (GREEN, AMBER, RED) if worry <= bad else (RED, AMBER, GREEN)
    steps = zip(colours, (None, min(bounds), max(bounds)), strict=True)
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in steps]}


def _options(kind: str) -> dict[str, Any]:
    match kind:
        case "stat":
            return {"colorMode": "background", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
        case "heatmap":
            return {"calculate": False, "color": {"scheme": "Greens", "mode": "scheme"}, "yAxis": {"unit": "s"}}
        case _:
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
