"""The table of all metrics: complete, written down, and said in sentences."""

from pathlib import Path

import pytest

from app.telemetry.metrics import families as table
from app.telemetry.metrics.families import GROUPS, Family
from deploy import metrics

CHECKOUT = Path(__file__).parents[2]
ALL = [family for group in GROUPS.values() for family in group]


def test_the_page_is_current() -> None:
    assert (CHECKOUT / metrics.PLACE).read_text() == metrics.page(), "run `make docs`"


def test_every_family_that_there_is_stands_in_one_group() -> None:
    made = [each for each in vars(table).values() if isinstance(each, Family)]
    assert sorted(ALL, key=lambda each: each.name) == sorted(made, key=lambda each: each.name)
    assert len({family.name for family in ALL}) == len(ALL)


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_a_family_is_named_by_the_rules_and_told_in_a_sentence(family: Family) -> None:
    assert family.name.startswith(("gllm_", "llm_"))
    assert not family.name.endswith(("_total", "_bucket", "_sum", "_count"))
    assert family.text[0].isupper()
    assert family.text.endswith(".")
    assert "  " not in family.text
    assert bool(family.bounds) == (family.kind == "histogram")
    assert list(family.bounds) == sorted(set(family.bounds))


@pytest.mark.parametrize(
    ("bounds", "thresholds"), [(table.FIRST_TOKEN, (0.5, 1, 2.5)), (table.PER_TOKEN, (0.05, 0.1, 0.25))]
)
def test_what_is_promised_can_be_read_off_a_bucket(bounds: tuple[float, ...], thresholds: tuple[float, ...]) -> None:
    assert set(thresholds) <= set(bounds)


def test_what_dashboards_may_ask_for_is_known_without_anything_running() -> None:
    known = metrics.series()
    assert known["gllm_request_outcomes_total"].labels == ("model", "outcome")
    assert known["gllm_time_to_first_token_seconds_bucket"].kind == "histogram"
    assert "gllm_request_outcomes" not in known
    assert set(known["vllm:num_requests_running"].labels) == {"model_name", "engine"}
    assert set(known["vllm:request_success_total"].labels) == {"model_name", "engine", "finished_reason"}
    assert {"vllm:inter_token_latency_seconds_sum", "process_open_fds"} <= known.keys()
