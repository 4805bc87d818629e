"""What `python -m bench cost` makes of what it measures."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import guard
from bench.cost import pages, plot, tables, tree
from bench.cost.build import built
from bench.cost.cores import shared_out
from bench.cost.gateway import ALL, NONE, POLICIES
from bench.cost.lag import rank
from bench.cost.lengths import Lengths, idle_streams
from bench.cost.results import Results, load, median, ratio
from tests.support.processes import ROOT, clean_environment

BURN = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass"


def results(**more: Any) -> Results:
    facts: dict[str, str | int] = {
        "date": "2026-01-01",
        "commit": "abc",
        "cpu": "A",
        "cores": 2,
        "system": "Linux",
        "python": "CPython 3.11",
    }
    return Results("python -m bench cost", facts, {"repeats": 2, "window_s": 3.0}, **more)


WAIT = "print(flush=True)\ntime.sleep(30)"
RUN = "import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {!r}])\n"


@contextmanager
def python(script: str) -> Iterator[int]:
    """Its number, once it has written something."""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_cpu_is_that_of_the_whole_tree_also_of_those_that_have_ended() -> None:
    with python(RUN.format(BURN) + WAIT) as pid:
        assert tree.tree(pid) == [pid]
        assert tree.cpu_s(pid) >= 0.29
        assert tree.memory(pid) > 1024**2


def test_children_that_run_are_in_the_tree() -> None:
    with python(RUN.format(f"{BURN}\n{WAIT}")) as pid:
        assert len(tree.tree(pid)) == 2
        assert tree.cpu_s(pid) >= 0.29


def test_a_gateway_has_its_core_for_itself_where_there_are_two() -> None:
    assert (shared_out([4, 5, 6, 7]).gateway, shared_out([4, 5, 6, 7]).load) == (4, 6)
    assert shared_out([4, 5]).apart
    assert not shared_out([4]).apart


def test_programs_are_compiled_once(tmp_path: Path) -> None:
    first = built("engine", tmp_path)
    when = first.stat().st_mtime_ns
    built.cache_clear()
    assert built("engine", tmp_path).stat().st_mtime_ns == when


def test_a_ratio_is_taken_in_each_repeat() -> None:
    mine = [{"us": 10.0}, {"us": 40.0}, {"us": 30.0}]
    theirs = [{"us": 10.0}, {"us": 20.0}, {"us": 3.0}]
    assert ratio(mine, theirs, "us") == 2
    assert median(mine, "us") == 30
    assert median(mine, "what nobody measured") is None


def test_policies_are_compared_with_what_lacks_them_and_nothing_else() -> None:
    by_name = {policy.name: policy.setup for policy in POLICIES}
    assert by_name["none"] == NONE
    assert by_name["all"] == ALL
    for policy in POLICIES[1:-1]:
        before, after = vars(by_name[policy.without]), vars(policy.setup)
        assert sum(before[name] != after[name] for name in before) == 1, policy.name


def test_what_a_policy_costs_is_by_how_much_it_is_dearer_in_the_same_turn() -> None:
    """Of three turns the second met a machine that was half as fast, and the third one that was so for one of both."""
    turns = {"none": (50.0, 100.0, 50.0), "metrics": (55.0, 110.0, 110.0)}
    policies = {name: [{"us_per_request": value} for value in values] for name, values in turns.items()}
    _, row = tables.policies(results(policies=policies))
    assert (row["costs µs"], row["beside"], row["half lie in"]) == ("5.00", "none", "82.5-110")


def test_a_window_is_cut_into_turns() -> None:
    assert Lengths(repeats=3, window_s=2.0, turn_s=0.25).turns == 24
    assert Lengths(repeats=1, window_s=0.1, turn_s=0.25).turns == 1


def test_goals_are_kept_missed_or_not_measured() -> None:
    found = results(gateways={"gllm": [{"us_per_request": 74.0, "paced_us_per_token": 31.0}]})
    kept = {goal.what: goal.kept for goal in tables.goals(found)}
    assert kept["CPU per request, all policies on"] is True
    assert kept["CPU per token, 1,000 paced streams"] is False
    assert kept["tokens/s as fast as they can"] is None


def test_growth_is_seen_where_it_is_worst() -> None:
    sizes = {"1": [{"us_per_request": 10.0}], "64": [{"us_per_request": 14.0}]}
    waiting = {"0 waiting": 10.0, "0 not waiting": 10.0, "9 waiting": 33.0, "9 not waiting": 30.0}
    line = {name: [{"us_per_request": value}] for name, value in waiting.items()}
    grown = tables.goals(results(scale={"replicas": sizes, "waiting": line}))[-1]
    assert (grown.found, grown.kept) == ("1.4", False)
    assert tables.goals(results(scale={"waiting": line}))[-1].found == "1.1", "as many connections cost as much"


def test_lag_is_the_bound_of_its_bucket() -> None:
    assert rank({0.001: 90, 0.005: 99, 0.01: 100, math.inf: 100}, 0.99) == 0.005
    assert math.isnan(rank({}, 0.99))


def test_idle_streams_are_as_many_as_there_can_be_open_files() -> None:
    assert idle_streams(10_000, 1_000_000) == 10_000
    assert idle_streams(10_000, 20_000) < 10_000


def test_the_document_changes_between_its_marks_only(tmp_path: Path) -> None:
    document, picture = tmp_path / "a.md", tmp_path / "a.svg"
    document.write_text(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n")
    found = results(gateways={"gllm": [{"us_per_request": 74.0}], "nginx": [{"us_per_request": 18.0}]})
    pages.write(found, document, picture)
    text = document.read_text()
    assert text.startswith(f"before\n{pages.BEGIN}\n")
    assert text.endswith(f"{pages.END}\nafter\n")
    assert "old" not in text
    assert "| gllm" in text
    pages.write(found, document, picture)
    assert document.read_text() == text


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("mine\n")
    with pytest.raises(ValueError, match="no place"):
        pages.write(results(), document, tmp_path / "a.svg")
    assert document.read_text() == "mine\n"


def test_bars_are_sorted_and_longer_the_more_they_stand_for() -> None:
    values = {"gllm": 74.0, "nginx": 18.0, "litellm": 7_000.0, "direct": 0.0}
    gateways = {name: [{"us_per_request": value}] for name, value in values.items()}
    root = ElementTree.fromstring(plot.picture(results(gateways=gateways)))
    bars = [float(each.attrib["width"]) for each in root.findall(".//{*}rect")][1:]
    names = [each.text for each in root.findall(".//{*}text") if each.attrib["text-anchor"] == "end"]
    assert names == ["nginx", "gllm", "litellm"]
    assert bars == sorted(bars)
    assert all(bar > 0 for bar in bars)


def test_the_document_shows_the_run_that_is_kept(tmp_path: Path) -> None:
    kept = load(ROOT / "bench" / "results" / "performance.json")
    document, picture = tmp_path / "performance.md", tmp_path / pages.PICTURE.name
    document.write_text(pages.DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    pages.write(kept, document, picture)
    assert document.read_text(encoding="utf-8") == pages.DOCUMENT.read_text(encoding="utf-8")
    assert picture.read_text(encoding="utf-8") == pages.PICTURE.read_text(encoding="utf-8")


def pairs(*ratios: float) -> list[guard.Pair]:
    return [(each * 1_000, 1_000.0) for each in ratios]


def test_the_guard_goes_by_the_median_and_allows_its_slack() -> None:
    usual, dear = guard.RECORDED, guard.RECORDED * guard.SLACK * 1.01
    assert guard.verdict(pairs(usual, usual, dear))[0] == guard.KEPT
    assert guard.verdict(pairs(dear, dear, usual))[0] == guard.DEARER
    assert "record" in guard.verdict(pairs(usual / 2))[1]


def test_the_guard_believes_no_run_in_which_requests_failed() -> None:
    assert guard.verdict([(math.nan, 1_000.0)])[0] == guard.INVALID


def run(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "bench", *words]
    return subprocess.run(argv, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=110)


@pytest.mark.alone
def test_a_quick_run_measures_a_real_gateway_beside_a_peer(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = run("cost", "--quick", "--parts", "gateways", "--peers", "plain", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    found = load(file)
    assert found.gateways.keys() == {"gllm", "plain", "direct"}
    mine, theirs, direct = (median(found.gateways[name], "us_per_request") for name in ("gllm", "plain", "direct"))
    assert direct == 0
    assert 0 < (mine or 0) < (theirs or 0)
    assert found.gateway["many_idle_streams"] == 200
    assert found.gateway["lag_beats"] > 0
    assert found.failed() == 0


@pytest.mark.alone
def test_a_quick_guard_measures_both() -> None:
    done = run("guard", "--pairs", "1", "--slice", "0.3")
    assert done.returncode in (guard.KEPT, guard.DEARER), done.stdout + done.stderr
    assert "to the plain proxy's" in done.stdout
