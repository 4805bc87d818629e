"""Rules and alerts, by promtool: each alert fires on its fault, and is silent before and after it."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import slo
from deploy.metrics import families, series
from deploy.prometheus.__main__ import PLACE, page

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules"
RUNBOOK = ROOT / "docs" / "runbook"
HEADINGS = ("## Meaning", "## Impact", "## Diagnosis", "## Mitigation")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="NOT TESTED: promtool is not installed here"
)


def rules() -> list[dict[str, Any]]:
    files = sorted(RULES.glob("*.yml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]


@dataclass(frozen=True)
class Drill:
    """Series by minute: an hour as it should be, `fault_min` as it should not, and as it should be again."""

    alert: str
    fault: dict[str, float]
    """By how much each series grows a minute (a counter) or what it is (a gauge), while the fault lasts."""
    well: dict[str, float]
    fault_min: int = 30
    after_min: int = 120
    missing: tuple[str, ...] = ()
    """Series that are not there at all during the fault."""

    @property
    def inputs(self) -> list[dict[str, str]]:
        return [{"series": name, "values": self._values(name)} for name in {**self.well, **self.fault}]

    def _values(self, name: str) -> str:
        well, bad = self.well.get(name, 0.0), self.fault.get(name, self.well.get(name, 0.0))
        before, during, after = 60, self.fault_min, self.after_min
        if name in self.missing:
            return f"{well:g}x{before} _x{during} {well:g}x{after}"
        if not _counts(name):
            return f"{well:g}x{before} {bad:g}x{during} {well:g}x{after}"
        first, second = before * well, before * well + (during + 1) * bad
        return f"0+{well:g}x{before} {first + bad:g}+{bad:g}x{during} {second + well:g}+{well:g}x{after}"


def _counts(name: str) -> bool:
    return name.split("{")[0].endswith(("_total", "_bucket", "_count"))


def outcomes(ok: float, **bad: float) -> dict[str, float]:
    every = {"ok": ok, **bad}
    return {f'gllm_request_outcomes_total{{model="m",outcome="{name}"}}': rate for name, rate in every.items()}


def slow(histogram: str, le: str, each_minute: float, quick: float) -> dict[str, float]:
    return {f'{histogram}_bucket{{le="{le}"}}': quick, f"{histogram}_count": each_minute}


UP = {'up{job="gateway",instance="gateway"}': 1.0}
TTFT, TPOT = "gllm_time_to_first_token_seconds", "gllm_time_per_output_token_seconds"
LAG = "gllm_event_loop_lag_seconds_bucket"

DRILLS = [
    Drill("AvailabilityBudgetBurns", outcomes(40, upstream_failed=20), outcomes(60, upstream_failed=0), 90, 480),
    Drill("FirstTokenBudgetBurns", slow(TTFT, "2.5", 60, 30), slow(TTFT, "2.5", 60, 60), 90, 480),
    Drill("TokenTimeBudgetBurns", slow(TPOT, "0.1", 60, 30), slow(TPOT, "0.1", 60, 60), 90, 480),
    Drill("GatewayDown", {'up{job="gateway",instance="gateway"}': 0.0}, UP),
    Drill("NoHealthyReplica", {'gllm_replica_ready{replica="a"}': 0.0}, {'gllm_replica_ready{replica="a"}': 1.0, **UP}),
    Drill(
        "SharedStoreDown",
        {'gllm_shared_store_up{instance="gateway"}': 0},
        {'gllm_shared_store_up{instance="gateway"}': 1},
    ),
    Drill("ReplicaDown", {'gllm_replica_ready{replica="a"}': 0}, {'gllm_replica_ready{replica="a"}': 1}),
    Drill("QueueTooOld", {'gllm_queue_oldest_seconds{model="m"}': 45}, {'gllm_queue_oldest_seconds{model="m"}': 2}),
    Drill(
        "OverloadRefusals",
        {'gllm_refusals_total{reason="queue_full"}': 10, **outcomes(50, queue_full=10)},
        {'gllm_refusals_total{reason="queue_full"}': 1, **outcomes(59, queue_full=1)},
    ),
    Drill(
        "ConnectionsFull",
        {'gllm_connections{instance="g"}': 950, 'gllm_connections_most{instance="g"}': 1_000},
        {'gllm_connections{instance="g"}': 700, 'gllm_connections_most{instance="g"}': 1_000},
    ),
    Drill("CircuitOpen", {'gllm_circuit_open{replica="a"}': 1}, {'gllm_circuit_open{replica="a"}': 0}),
    Drill("RetryBudgetSpent", {"gllm_retries_denied_total": 2}, {"gllm_retries_denied_total": 0}),
    Drill(
        "CacheNearlyFull",
        {
            'vllm:kv_cache_usage_perc{instance="e",model_name="m"}': 0.97,
            'vllm:num_preemptions_total{instance="e",model_name="m"}': 3,
        },
        {
            'vllm:kv_cache_usage_perc{instance="e",model_name="m"}': 0.97,
            'vllm:num_preemptions_total{instance="e",model_name="m"}': 0,
        },
    ),
    Drill(
        "StreamsInterrupted",
        {'gllm_streams_total{outcome="ok"}': 50, 'gllm_streams_total{outcome="interrupted"}': 2},
        {'gllm_streams_total{outcome="ok"}': 50, 'gllm_streams_total{outcome="interrupted"}': 0.1},
    ),
    Drill(
        "LedgerNotWritten", {'gllm_ledger_age_seconds{instance="g"}': 300}, {'gllm_ledger_age_seconds{instance="g"}': 2}
    ),
    Drill(
        "TenantsFileRefused",
        {'gllm_tenants_file_refused{instance="g"}': 1},
        {'gllm_tenants_file_refused{instance="g"}': 0},
    ),
    Drill(
        "TelemetryDropped",
        {"gllm_spans_dropped_total": 5, "gllm_log_lines_dropped_total": 0},
        {"gllm_spans_dropped_total": 0, "gllm_log_lines_dropped_total": 0},
    ),
    Drill(
        "EventLoopLate",
        {
            f'{LAG}{{instance="g",le="0.25"}}': 10,
            f'{LAG}{{instance="g",le="1.0"}}': 60,
            f'{LAG}{{instance="g",le="+Inf"}}': 60,
        },
        {
            f'{LAG}{{instance="g",le="0.25"}}': 60,
            f'{LAG}{{instance="g",le="1.0"}}': 60,
            f'{LAG}{{instance="g",le="+Inf"}}': 60,
        },
    ),
    Drill("TargetDown", {'up{job="engine",instance="e"}': 0}, {'up{job="engine",instance="e"}': 1}),
    Drill("SwapFailed", {'gllm_swaps_total{outcome="failed"}': 1}, {'gllm_swaps_total{outcome="failed"}': 0}, 5),
    Drill("WorkerLost", {'gllm_workers{state="lost"}': 1}, {'gllm_workers{state="lost"}': 0}),
    Drill(
        "FailedLogins",
        {'gllm_rate_limits_met_total{limit="logins"}': 30},
        {'gllm_rate_limits_met_total{limit="logins"}': 0.5},
    ),
]


def promtool(*argv: str) -> str:
    done = subprocess.run(["promtool", *argv], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def drilled(drill: Drill, rules_in: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    def fires(at_min: int, count: int | None) -> dict[str, Any]:
        query = f'count by (alertname) (ALERTS{{alertname="{drill.alert}",alertstate="firing"}} >= 0) > bool 0'
        labels = f'{{alertname="{drill.alert}"}}'
        expected = [] if count is None else [{"labels": labels, "value": count}]
        return {"expr": query, "eval_time": f"{at_min}m", "exp_samples": expected}

    ends = 60 + drill.fault_min
    test = {
        "rule_files": [str(file) for file in sorted(rules_in.glob("*.yml"))],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": drill.inputs,
                "promql_expr_test": [fires(58, None), fires(ends - 1, 1), fires(ends + drill.after_min - 5, None)],
            }
        ],
    }
    file = folder / f"{drill.alert}.yml"
    file.write_text(yaml.safe_dump(test))
    return subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=100, check=False
    )


@needs_promtool
@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.alert)
def test_it_fires_on_its_fault_and_is_silent_before_and_after(drill: Drill, tmp_path: Path) -> None:
    done = drilled(drill, RULES, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("drill", DRILLS, ids=lambda drill: drill.alert)
def test_an_alert_that_compares_the_other_way_round_is_found(drill: Drill, tmp_path: Path) -> None:
    turned = tmp_path / "rules"
    turned.mkdir()
    other = {">": "<", "==": "!=", "absent": "count"}
    for file in RULES.glob("*.yml"):
        said = yaml.safe_load(file.read_text())
        for rule in (rule for group in said["groups"] for rule in group["rules"]):
            if rule.get("alert") == drill.alert:
                mine = re.search(r" > | == (?=[01](\D|$))|^absent", rule["expr"])
                assert mine is not None
                rule["expr"] = rule["expr"].replace(mine[0].strip(), other[mine[0].strip()], 1)
        (turned / file.name).write_text(yaml.safe_dump(said))
    assert drilled(drill, turned, tmp_path).returncode != 0


def test_every_alert_is_drilled() -> None:
    assert {rule["alert"] for rule in ALERTS} - {drill.alert for drill in DRILLS} == {"Watchdog"}


@needs_promtool
def test_the_watchdog_never_sleeps() -> None:
    assert next(rule["expr"] for rule in ALERTS if rule["alert"] == "Watchdog") == "vector(1)"
    promtool("check", "rules", *map(str, sorted(RULES.glob("*.yml"))))
    promtool("check", "config", "--syntax-only", str(ROOT / "deploy" / "prometheus" / "prometheus.yml"))


@pytest.mark.skipif(shutil.which("amtool") is None, reason="NOT TESTED: amtool is not installed here")
def test_alertmanager_takes_its_configuration() -> None:
    file = str(ROOT / "deploy" / "alertmanager" / "alertmanager.yml")
    done = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_who_is_called_learns_what_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    said = rule["annotations"]
    assert rule["labels"]["severity"] in ("page", "ticket", "none")
    assert "$value" in said["summary"]
    assert said["dashboard"].removeprefix("/d/") in (
        "overview",
        "gateway",
        "streams",
        "engines",
        "cluster",
        "telemetry",
    )
    assert said["runbook_url"] == f"docs/runbook/{rule['alert']}.md"
    told = (RUNBOOK / f"{rule['alert']}.md").read_text()
    assert told.startswith(f"# {rule['alert']}\n")
    assert [heading for heading in HEADINGS if heading not in told] == []


def test_no_page_of_the_runbook_is_about_nothing() -> None:
    pages = {file.stem for file in RUNBOOK.glob("*.md")} - {"README"}
    assert pages == {rule["alert"] for rule in ALERTS}
    index = (RUNBOOK / "README.md").read_text()
    assert [page for page in sorted(pages) if f"({page}.md)" not in index] == []


def test_the_rules_of_the_objectives_are_current() -> None:
    assert (ROOT / PLACE).read_text() == page(), "make docs"


def test_targets_of_time_are_bounds_of_buckets() -> None:
    known = families()
    assert slo.TTFT_S in known[TTFT].bounds
    assert slo.TPOT_S in known[TPOT].bounds


FOREIGN = {"up", "ALERTS"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_asks_for_nothing_that_nobody_makes(rule: dict[str, Any]) -> None:
    recorded = {each["record"] for each in rules() if "record" in each}
    bare = re.sub(r'"[^"]*"', "", rule["expr"])
    asked = set(re.findall(r"\b(?:gllm|llm|vllm|slo)[_:][a-zA-Z0-9_:]+", bare))
    assert asked - set(series()) - recorded - FOREIGN == set()
