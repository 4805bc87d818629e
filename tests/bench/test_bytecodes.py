"""What a request and a token take of Python: no more than they did."""

import sys
from functools import cache

import pytest

from bench import bytecodes
from bench.bytecodes import Count, Counts, of_functions, of_policies, total
from bench.cost.gateway import EVERYTHING, POLICIES
from bench.figures import table

(ALL,) = (policy for policy in POLICIES if policy.name == EVERYTHING)
of_a_request, of_a_token = cache(bytecodes.of_a_request), cache(bytecodes.of_a_token)

REQUEST, TOKEN = Count(8_150, 309), Count(380, 12)
"""With all policies on, in CPython 3.11. Who makes them cheaper writes it down here."""
SLACK = 1.05

recorded = pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="other versions have other bytecodes")


def assert_no_more(found: Counts, recorded: Count) -> Count:
    count = total(found)
    dearest = table(of_functions(found, 20))
    assert count.bytecodes <= recorded.bytecodes * SLACK, f"the hot path got longer: {count}\n{dearest}"
    assert count.calls <= recorded.calls * SLACK, f"the hot path got longer: {count}\n{dearest}"
    return count


@recorded
def test_a_request_takes_what_it_did() -> None:
    count = assert_no_more(of_a_request(ALL), REQUEST)
    assert count.bytecodes >= REQUEST.bytecodes / SLACK, f"the hot path got shorter: record {count}"


@recorded
def test_a_token_takes_no_more_than_it_did() -> None:
    """Less it takes wherever a machine stands still for a moment, and two tokens come together."""
    assert_no_more(of_a_token(ALL), TOKEN)


def test_what_happens_once_for_a_request_is_counted_once() -> None:
    found = of_a_request(ALL)
    assert found["app/gateway/intake.py Intake.call"].calls == 1
    assert found["app/gateway/edge.py Edge.__call__"].calls == 2, "begun, and gone on with after the engine's answer"


def test_a_policy_costs_what_it_takes_more_than_the_same_without_it() -> None:
    rows = of_policies({"none": Count(5_000, 200), "metrics": Count(5_700, 220.4)})
    assert [(row["bytecodes"], row["costs"], row["calls more"], row["beside"]) for row in rows] == [
        ("5,000", None, None, None),
        ("5,700", "700", "20", "none"),
    ]


def test_a_run_shows_what_it_has_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert bytecodes.main(["--of", "none", "--functions", "3"]) == 0
    said = capsys.readouterr().out
    assert "app/gateway/intake.py Intake.call" in said
    assert "| none |" in said
