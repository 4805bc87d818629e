"""The dashboards drawn: numbers as people read them, every panel in its place, nothing where nothing is known."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deploy.grafana.boards import BOARDS
from deploy.grafana.draw import span_of
from deploy.grafana.draw.answers import Answer, Line, Span, everything
from deploy.grafana.draw.charts import HEAT, MEANT
from deploy.grafana.draw.frame import Mark
from deploy.grafana.draw.picture import picture
from deploy.grafana.draw.units import ticks, written
from deploy.grafana.panel import Board, Panel, Query, Row, State

ROOT = Path(__file__).parents[2]
LARGEST = 200_000
SPAN = Span(0, 100, 1, 10)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.00025, "s", "250 µs"),
        (0.0123, "s", "12.3 ms"),
        (2.5, "s", "2.5 s"),
        (90, "s", "1.5 min"),
        (0.995, "percentunit", "99.5 %"),
        (-8.41, "percentunit", "-841 %"),
        (0.33, "reqps", "0.33 /s"),
        (12_345, "short", "12.3k"),
        (99 * 2**20, "bytes", "99 MiB"),
    ],
)
def test_a_number_is_written_in_its_unit(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


@pytest.mark.parametrize(
    ("most", "unit", "scale"),
    [
        (0, "short", [0, 1]),
        (7.3, "short", [0, 2, 4, 6, 8]),
        (0.03, "s", [0, 0.01, 0.02, 0.03]),
        (95 * 2**20, "bytes", [0, 25 * 2**20, 50 * 2**20, 75 * 2**20, 100 * 2**20]),
    ],
)
def test_a_scale_is_of_round_numbers(most: float, unit: str, scale: list[float]) -> None:
    assert ticks(most, unit) == scale


def test_a_query_is_asked_with_nothing_chosen() -> None:
    assert everything('rate(x{model=~"$model"}[$__rate_interval])', 20) == 'rate(x{model=~".*"}[20s])'


def test_the_step_suits_the_width_and_never_passes_a_scrape() -> None:
    assert (span_of(0, 60, 5).step_s, span_of(0, 60, 5).rate_s) == (5, 20)
    assert (span_of(0, 86_400, 5).step_s, span_of(0, 86_400, 5).rate_s) == (576, 581)


# --- one panel ------------------------------------------------------------------------------------------------------


def drawn(panel: Panel, *lines: Line, marks: tuple[Mark, ...] = (), dots: tuple[tuple[float, float], ...] = ()) -> str:
    board = Board("b", "Board", "", (Row("", (panel,)),))
    page = picture(board, {panel.title: Answer(lines, dots)}, SPAN, marks, "")
    ElementTree.fromstring(page)
    return page


def panel(**fields: object) -> Panel:
    made: dict[str, object] = {"title": "A <panel>", "text": "", "unit": "short", "queries": (Query("x", "a"),)}
    return Panel(**(made | fields))  # type: ignore[arg-type]


def line(name: str, *values: float, start: int = 0, **labels: str) -> Line:
    return Line(name, [(float(start + at), value) for at, value in enumerate(values)], labels)


def test_without_an_answer_it_says_so() -> None:
    assert "No data" in drawn(panel())
    assert "No data" not in drawn(panel(), line("a", 1, 2))


def test_a_curve_ends_where_there_is_no_value() -> None:
    whole, broken = line("a", 1, 2, 3, 4), Line("a", [(0, 1), (1, 2), (50, 3), (51, 4)], {})
    assert drawn(panel(), whole).count("<polyline") == 1
    assert drawn(panel(), broken).count("<polyline") == 2


def test_what_is_measured_by_a_limit_shows_it_dashed_and_not_stacked() -> None:
    limited = panel(stacked=True, queries=(Query("x", "a"), Query("y", "limit", limit=True)))
    page = drawn(limited, line("a", 1, 3), line("limit", 8, 8))
    assert (page.count("<polygon"), page.count("<polyline")) == (1, 1)
    assert 'stroke-dasharray="8 6"' in page


@pytest.mark.parametrize(("now", "colour"), [(0.9, "#37872d"), (0.3, "#c4632b"), (-2.0, "#a3293a")])
def test_a_number_is_green_amber_or_red_by_its_bounds(now: float, colour: str) -> None:
    page = drawn(panel(kind="stat", unit="percentunit", bounds=(0.5, 0.1)), line("a", 1, now))
    assert colour in page
    assert written(now, "percentunit") in page


def test_a_table_has_what_is_there_at_the_end() -> None:
    columns = (State("alertname", "alert"), State("Value", "how many"))
    over, now = line("", 1, alertname="Over"), line("", 2, start=99, alertname="Now")
    page = drawn(panel(kind="table", states=columns), over, now)
    assert "Now" in page
    assert "Over" not in page


def test_a_timeline_is_cut_where_the_state_changes_and_where_nothing_is_known() -> None:
    states = (State("1", "ready", "green"), State("0", "not ready", "red"))
    known = Line("a", [(0, 1), (1, 1), (2, 0), (3, 0), (50, 0), (51, 0)], {})
    page = drawn(panel(kind="state-timeline", states=states), known)
    assert page.count('fill-opacity=".8"') == 3


def test_a_heatmap_shows_what_each_bucket_holds_alone() -> None:
    buckets = [line(le, 0, count, le=le) for le, count in (("0.1", 4), ("1", 4), ("2", 5), ("+Inf", 5))]
    page = drawn(panel(kind="heatmap"), *buckets, dots=((1, 0.05),))
    assert re.findall(r"≤ ([^<]+)", page) == ["100 ms", "1 s", "2 s"], "the last one is empty, and left out"
    assert page.count("<circle") == 1
    assert sum(page.count(f'fill="{colour}"') for colour in HEAT) == 2, "where there is none, there is no cell"


def test_colours_that_mean_something_are_kept_for_it() -> None:
    others = [line(name, 1, 2) for name in "abcd"]
    page = drawn(panel(colours={"late": "yellow"}), *others, line("late", 1, 2))
    colours = re.findall(r'<polyline [^>]*stroke="(#\w+)"', page)
    assert colours.count(MEANT["yellow"]) == 1
    assert colours[-1] == MEANT["yellow"]


# --- those in the documents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_the_pictures_show_the_dashboards_as_they_are(board: Board) -> None:
    page = (ROOT / "docs" / "img" / f"{board.uid}.svg").read_text()
    shown = [element.text for element in ElementTree.fromstring(page).iter("{http://www.w3.org/2000/svg}text")]
    assert {panel.title for panel in board.panels} <= set(shown), "make pictures"
    assert "No data" not in shown
    assert any(re.search(r"real Prometheus .* on \d{4}-\d\d-\d\d at .* commit \w+", said or "") for said in shown)
    assert len(page.encode()) < LARGEST
    assert f"img/{board.uid}.svg" in (ROOT / "docs" / "dashboards.md").read_text()
