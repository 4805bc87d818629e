"""Writes rules/slo.yml anew, from `deploy.slo`:

python -m deploy.prometheus
"""

from pathlib import Path

from deploy.slo import BURNS, LEAST_EVENTS, OBJECTIVES, PERIOD, WINDOWS, Burn, Objective

PLACE = "deploy/prometheus/rules/slo.yml"
HEAD = "# `make docs` writes this file from deploy/slo.py.\n"
SECONDS = {"m": 60, "h": 3_600, "d": 86_400}


def page() -> str:
    lines = [HEAD, "groups:"]
    for each in OBJECTIVES:
        lines += [f"  - name: slo-{each.name}", "    rules:"]
        for window in WINDOWS:
            bad, everything = each.bad.format(window=window), each.all.format(window=window)
            lines += _record(f"slo:{each.name}_errors:ratio_rate{window}", f"{bad} / {everything}")
            lines += _record(f"slo:{each.name}_events:rate{window}", everything)
        lines += _record(f"slo:{each.name}_objective:ratio", f"vector({each.share:g})")
        bad, everything = each.bad.format(window=PERIOD), each.all.format(window=PERIOD)
        lines += _record(f"slo:{each.name}_budget:remaining_ratio", f"1 - {bad} / {everything} / {each.budget:g}")
        for burn in BURNS:
            lines += _alert(each, burn)
    return "\n".join(lines) + "\n"


def _record(name: str, query: str) -> list[str]:
    return [f"      - record: {name}", f"        expr: {query}"]


def _alert(each: Objective, burn: Burn) -> list[str]:
    limit = f"{burn.factor * each.budget:g}"
    events = f"slo:{each.name}_events:rate{burn.long} * {_seconds(burn.long)} > {LEAST_EVENTS}"
    return [
        f"      - alert: {each.alert}",
        "        expr: >-",
        f"          slo:{each.name}_errors:ratio_rate{burn.long} > {limit}",
        f"          and slo:{each.name}_errors:ratio_rate{burn.short} > {limit}",
        f"          and {events}",
        f"        labels: {{severity: {burn.severity}, slo: {each.name}, window: {burn.long}}}",
        "        annotations:",
        f'          summary: "{{{{ $value | humanizePercentage }}}} of events were bad in {burn.long}: {burn.said}."',
        f'          description: "The promise: {each.said}, over {PERIOD}."',
        "          dashboard: /d/overview",
        f"          runbook_url: docs/runbook/{each.alert}.md",
    ]


def _seconds(window: str) -> int:
    return int(window[:-1]) * SECONDS[window[-1]]


def write(checkout: Path) -> None:
    (checkout / PLACE).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path.cwd())
