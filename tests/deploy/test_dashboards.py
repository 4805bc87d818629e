"""The dashboards: made by code, asking only for what is made, and every one of their queries has an answer."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cluster.control import WorkerState
from app.errors import Outcome
from app.settings.tree import branches, names_of
from deploy.grafana.__main__ import PLACE, pages
from deploy.grafana.boards import BOARDS
from deploy.grafana.draw.answers import everything
from deploy.grafana.panel import Board, Panel, Variable
from deploy.grafana.queries import OUTCOMES, WORKERS
from deploy.metrics import series
from tests.deploy.conftest import ON_PROMETHEUS, Lived

ROOT = Path(__file__).parents[2]
PANELS = [(board, panel) for board in BOARDS for panel in board.panels]
QUERIES = [(board, panel, query) for board, panel in PANELS for query in panel.queries]
OF_PROMETHEUS = {"up", "ALERTS", "scrape_samples_scraped", "scrape_duration_seconds"}
LETTER_PX, COLUMN_PX = 6.6, 56
"""Of a title, and of a column on a screen that is not large."""
RULES = ROOT / "deploy" / "prometheus" / "rules"


def recorded() -> set[str]:
    groups = [group for file in RULES.glob("*.yml") for group in yaml.safe_load(file.read_text())["groups"]]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def named(value: object) -> str:
    match value:
        case Board():
            return value.uid
        case Panel():
            return value.title.partition(" (")[0]
        case _:
            return getattr(value, "legend", "") or "query"


def test_the_files_are_what_the_code_makes() -> None:
    made = pages()
    assert {file.name: file.read_text() for file in (ROOT / PLACE).glob("*.json")} == made, "make docs"


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=named)
def test_a_panel_says_what_is_good_and_what_to_do(board: Board, panel: Panel) -> None:
    assert "(good: " in panel.title
    assert panel.text.endswith(".")
    assert panel.unit
    assert panel.queries
    assert len(panel.title) * LETTER_PX < panel.width * COLUMN_PX, "the title is cut off"
    assert sum(each.title == panel.title for each in board.panels) == 1


def test_panels_do_not_lie_on_each_other() -> None:
    for page in pages().values():
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(page)["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert not cells & taken, panel["title"]
            assert place["x"] + place["w"] <= 24
            taken |= cells


@pytest.mark.parametrize(("board", "panel", "query"), QUERIES, ids=named)
def test_a_query_asks_for_nothing_that_nobody_makes(board: Board, panel: Panel, query: Any) -> None:
    bare = re.sub(r'"[^"]*"', "", query.expr)
    asked = set(re.findall(r"\b(?:gllm|llm|vllm|slo|process|scrape)[_:][a-zA-Z0-9_:]+", bare))
    assert asked - set(series()) - recorded() - OF_PROMETHEUS == set()
    assert asked or "up" in bare or "ALERTS" in bare


def test_a_counter_is_never_shown_as_it_stands() -> None:
    for _, _, query in QUERIES:
        for name in re.findall(r"\b\w+:?\w*_(?:total|bucket|count|sum)\b", query.expr):
            assert re.search(rf"(?:rate|increase)\({name}", query.expr), query.expr


def test_variables_are_asked_of_what_is_made() -> None:
    for board in BOARDS:
        used = set(re.findall(r'"\$(\w+)"', " ".join(query.expr for panel in board.panels for query in panel.queries)))
        assert used == {variable.name for variable in board.variables}
        for variable in board.variables:
            metric = re.match(r"label_values\(([a-zA-Z_:]+)", variable.query)
            assert metric is not None
            assert metric[1] in set(series()) | OF_PROMETHEUS


def test_a_colour_is_given_to_nothing_that_is_never_there() -> None:
    assert OUTCOMES.keys() == {outcome.value for outcome in Outcome}
    assert WORKERS.keys() == {state.value for state in WorkerState} | {"lost"}


@pytest.mark.parametrize(("board", "panel"), PANELS, ids=named)
def test_what_panels_say_can_be_typed(board: Board, panel: Panel) -> None:
    """Settings and commands that their texts name."""
    settings = {name for branch in branches() for name in names_of(branch)}
    assert set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", panel.text)) <= settings
    commands = {file.stem for file in (ROOT / "gllm" / "cli").glob("*.py")}
    assert set(re.findall(r"`gllm (\w+)", panel.text)) <= commands


def test_grafana_is_told_where_they_are_and_what_they_ask() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "datasources.yml").read_text())["datasources"]
    assert {each["uid"] for each in sources} == {"prometheus", "traces"}
    (destination,) = sources[0]["jsonData"]["exemplarTraceIdDestinations"]
    assert destination == {"name": "trace_id", "datasourceUid": "traces"}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dashboards.yml").read_text())["providers"]
    assert not provider["allowUiUpdates"]


# --- against a real Prometheus ------------------------------------------------------------------------------------


RATE_S = 10.0


@pytest.mark.parametrize(
    ("board", "panel", "query"),
    [pytest.param(*each, marks=ON_PROMETHEUS, id="-".join(map(named, each))) for each in QUERIES],
)
def test_a_query_has_an_answer(lived: Lived, board: Board, panel: Panel, query: Any) -> None:
    assert lived.seen(everything(query.expr, RATE_S)), query.expr


@pytest.mark.parametrize(
    "variable",
    [
        pytest.param(each, marks=ON_PROMETHEUS, id=each.name)
        for each in {each.name: each for board in BOARDS for each in board.variables}.values()
    ],
)
def test_a_variable_offers_something(lived: Lived, variable: Variable) -> None:
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable.query)
    assert asked is not None
    assert any(lived.prometheus.values_of(asked[2], asked[1]))


@pytest.mark.parametrize("name", [pytest.param(each, marks=ON_PROMETHEUS, id=each) for each in sorted(recorded())])
def test_a_rule_has_an_answer(lived: Lived, name: str) -> None:
    assert lived.seen(name)


@pytest.mark.parametrize("check", [pytest.param("rules", marks=ON_PROMETHEUS)])
def test_no_rule_fails(lived: Lived, check: str) -> None:
    rules = lived.prometheus.rules()
    assert len(rules) > 60
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


@pytest.mark.parametrize("alert", [pytest.param("Watchdog", marks=ON_PROMETHEUS)])
def test_what_went_wrong_in_that_minute_was_pending(lived: Lived, alert: str) -> None:
    """Most alerts wait for minutes before they fire; these began to."""
    seen = {each.labels["alertname"] for each in lived.seen("ALERTS")}
    assert {alert, "ReplicaDown", "CircuitOpen"} <= seen
