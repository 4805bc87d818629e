"""What a dashboard consists of, and the JSON that Grafana reads. No more of Grafana's words than are used here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
RATE = "$__rate_interval"

GREEN, AMBER, RED, GREY = "green", "orange", "red", "text"


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""
    exemplars: bool = False
    limit: bool = False
    """It is what the others are measured by."""


@dataclass(frozen=True)
class State:
    value: str
    text: str
    colour: str = ""


Kind = Literal["timeseries", "stat", "heatmap", "state-timeline", "table"]
"""A table shows what is now, a row a series."""


@dataclass(frozen=True)
class Panel:
    title: str
    """Says what is good."""
    text: str
    """What it is, and what to do if it is not good."""
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    bounds: tuple[float, float] | None = None
    """From where it is a worry, and from where it is bad; the other way round where more is better."""
    stacked: bool = False
    colours: Mapping[str, str] = field(default_factory=dict)
    """Of series that have the same meaning wherever they are, by their names; others get what is left."""
    states: tuple[State, ...] = ()
    """What a `state-timeline` says of its values, and a `table` of its columns in place of their names."""


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


def placed(board: Board) -> Iterator[tuple[Row | Panel, dict[str, int]]]:
    """Each row's title and each panel, and where on the grid it is."""
    top = 0
    for row in board.rows:
        yield row, {"h": 1, "w": WIDTH, "x": 0, "y": top}
        top += 1
        left, height = 0, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                left, top = 0, top + height
            height = 4 if panel.kind == "stat" else 8
            yield panel, {"h": height, "w": panel.width, "x": left, "y": top}
            left += panel.width
        top += height


def _panels(board: Board) -> list[dict[str, Any]]:
    return [
        _panel(thing, number, place)
        if isinstance(thing, Panel)
        else {
            "type": "row",
            "id": number,
            "title": thing.title,
            "collapsed": False,
            "panels": [],
            "gridPos": place,
        }
        for number, (thing, place) in enumerate(placed(board), 1)
    ]


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "id": number,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": [_target(each, chr(65 + index), panel.kind) for index, each in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": list(_overrides(panel))},
        "options": _options(panel.kind),
        "transformations": [_columns(panel)] if panel.kind == "table" else [],
    }


def _target(query: Query, letter: str, kind: Kind) -> dict[str, Any]:
    now = kind in ("stat", "table")
    return {
        "refId": letter,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "exemplar": query.exemplars,
        "format": kind if kind in ("heatmap", "table") else "time_series",
        "instant": now,
        "range": not now,
        "datasource": SOURCE,
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "state-timeline":
            meant = {each.value: {"text": each.text, "color": each.colour} for each in panel.states}
            solid = {"fillOpacity": 70, "lineWidth": 0}
            return {"unit": panel.unit, "custom": solid, "mappings": [{"type": "value", "options": meant}]}
        case "stat":
            return {"unit": panel.unit, "thresholds": _thresholds(panel.bounds)}
        case "timeseries":
            stacking = {"mode": "normal" if panel.stacked else "none"}
            custom: dict[str, Any] = {"fillOpacity": 50 if panel.stacked else 0, "showPoints": "never"}
            custom |= {"stacking": stacking, "thresholdsStyle": {"mode": "dashed" if panel.bounds else "off"}}
            return {"unit": panel.unit, "min": 0, "custom": custom, "thresholds": _thresholds(panel.bounds)}
        case _:
            return {"unit": panel.unit}


def _overrides(panel: Panel) -> Iterator[dict[str, Any]]:
    for name, colour in panel.colours.items():
        yield _override(name, [_fixed(colour)])
    for query in panel.queries:
        if query.limit:
            dashes = {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 6]}}
            stays_out = {"id": "custom.stacking", "value": {"mode": "none"}}
            yield _override(query.legend, [_fixed(GREY), dashes, stays_out])


def _override(name: str, properties: list[dict[str, Any]]) -> dict[str, Any]:
    return {"matcher": {"id": "byName", "options": name}, "properties": properties}


def _fixed(colour: str) -> dict[str, Any]:
    return {"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}


def _columns(panel: Panel) -> dict[str, Any]:
    shown = {each.value: index for index, each in enumerate(panel.states)}
    names = {each.value: each.text for each in panel.states}
    return {
        "id": "organize",
        "options": {"excludeByName": {"Time": True}, "indexByName": shown, "renameByName": names},
    }


def _thresholds(bounds: tuple[float, float] | None) -> dict[str, Any]:
    if bounds is None:
        return {"mode": "absolute", "steps": [{"color": GREEN, "value": None}]}
    worry, bad = bounds
    colours = (GREEN, AMBER, RED) if worry <= bad else (RED, AMBER, GREEN)
    steps = zip(colours, (None, min(bounds), max(bounds)), strict=True)
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in steps]}


def _options(kind: Kind) -> dict[str, Any]:
    match kind:
        case "stat":
            return {"colorMode": "background", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}}
        case "heatmap":
            colour = {"mode": "scheme", "scheme": "Greens", "exponent": 0.5, "steps": 64}
            exemplars = {"color": "rgba(192,216,255,0.8)"}
            return {"calculate": False, "color": colour, "exemplars": exemplars, "yAxis": {"unit": "s"}}
        case "state-timeline":
            shape = {"mergeValues": True, "showValue": "never", "rowHeight": 0.8}
            return {**shape, "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom"}}
        case "table":
            return {"showHeader": True}
        case "timeseries":
            return {
                "legend": {
                    "showLegend": True,
                    "displayMode": "table",
                    "placement": "bottom",
                    "calcs": ["lastNotNull", "max"],
                    "sortBy": "Max",
                    "sortDesc": True,
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
