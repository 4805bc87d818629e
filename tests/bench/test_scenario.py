"""What a scenario says of itself: kept, broken, or not to be believed."""

import math
import os
from pathlib import Path

import pytest

from bench import machine
from bench.figures import of, percentile, table
from bench.open_loop import Lateness
from bench.scenario import BROKEN, INVALID, KEPT, Options, Report, main, verdict, written

USUAL, QUICK = Options(None, 7, quick=False), Options(None, 7, quick=True)


def report(*, kept: bool = True, late_p99_s: float = 0.001) -> Report:
    found = Report({"load": "none"}, lateness=[Lateness(0.0, late_p99_s, late_p99_s)])
    found.tables["Rows"] = [{"name": "a", "ms": 1.25}]
    found.promise("it holds", "as it was found", kept=kept)
    return found


def test_one_broken_promise_breaks_the_verdict() -> None:
    both = report()
    both.promise("this, too", "it does not", kept=False)
    assert verdict(report(), USUAL) == KEPT
    assert verdict(both, USUAL) == BROKEN
    assert "BROKEN  this, too: it does not" in written({}, both, BROKEN)


def test_figures_of_a_late_generator_are_invalid_whatever_they_say() -> None:
    assert verdict(report(late_p99_s=0.02), USUAL) == INVALID
    assert verdict(report(kept=False, late_p99_s=0.02), USUAL) == INVALID
    assert verdict(report(late_p99_s=0.02), QUICK) == KEPT


def test_a_scenario_prints_what_it_was_measured_on_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measure(options: Options) -> Report:
        assert options == Options(seconds=2.0, seed=3, quick=True)
        return report(kept=False)

    kept = tmp_path / "results" / "one.json"
    argv = ["--seconds", "2", "--seed", "3", "--quick", "--json", str(kept)]
    assert main("one", "One.", measure, argv) == BROKEN
    said = capsys.readouterr().out
    assert all(each in said for each in ("scenario one", f"commit {machine.commit()}", "cores", "verdict: BROKEN"))
    assert '"verdict": 1' in kept.read_text()


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert [percentile([1, 2, 3, 4], rank) for rank in (0, 25, 50, 99, 100)] == [1, 1, 2, 4, 4]
    assert math.isnan(percentile([], 50))
    assert (of([0.2, 0.1], 99), of([], 99)) == (200.0, None)


def test_a_table_is_markdown_that_people_can_read() -> None:
    rows = table([{"": "a", "ms": 1.25, "n": 3}, {"": "longer", "ms": 250.4, "n": None}])
    assert rows.splitlines() == [
        "|        |  ms |   n |",
        "| ------ | --: | --: |",
        "| a      | 1.2 |   3 |",
        "| longer | 250 |   - |",
    ]


def test_the_meter_tells_our_own_cpu_from_that_of_others() -> None:
    meter = machine.Meter([os.getpid()])
    sum(range(2_000_000))
    (ours, again), strangers = meter.stop()
    assert ours == again > 0
    assert strangers >= 0
