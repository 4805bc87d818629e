"""What every scenario has: options, promises, a report, and an exit code that says whether the promises were kept."""

import argparse
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from bench import machine
from bench.figures import Row, table
from bench.open_loop import LATE_S, Lateness

KEPT, BROKEN, INVALID = 0, 1, 2

QUICK_LATE_S = 0.25
"""A quick run shows that everything works, on a machine that does other things meanwhile."""

SEED = 7


@dataclass(frozen=True)
class Options:
    seconds: float | None
    """Of load, for each row; `None` is what the scenario thinks right."""
    seed: int
    quick: bool

    def lasting(self, usual: float, quick: float) -> float:
        return self.seconds or (quick if self.quick else usual)


@dataclass(frozen=True)
class Promise:
    says: str
    found: str
    kept: bool


@dataclass
class Report:
    """What a scenario hands over."""

    settings: dict[str, Any]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    promises: list[Promise] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lateness: list[Lateness] = field(default_factory=list)
    """Of each run whose times are part of a promise."""

    def promise(self, says: str, found: str, *, kept: bool) -> None:
        self.promises.append(Promise(says, found, kept))


Scenario = Callable[[Options], Awaitable[Report]]


def main(name: str, doc: str | None, scenario: Scenario, argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m bench {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, help="of load, for each row")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--quick", action="store_true", help="a few seconds, and times are not taken seriously")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, too")
    args = parser.parse_args(argv)
    options = Options(args.seconds, args.seed, args.quick)
    facts = {"scenario": name, "date": f"{datetime.now(UTC):%Y-%m-%d}", **machine.facts(), **asdict(options)}
    report = uvloop.run(_measured(scenario, options))
    code = verdict(report, options)
    print(written(facts, report, code))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts, "verdict": code, **asdict(report)}, indent=1))
    return code


async def _measured(scenario: Scenario, options: Options) -> Report:
    return await scenario(options)


def verdict(report: Report, options: Options) -> int:
    limit_s = QUICK_LATE_S if options.quick else LATE_S
    if any(late.is_too_much(limit_s) for late in report.lateness):
        return INVALID
    return KEPT if all(promise.kept for promise in report.promises) else BROKEN


def written(facts: dict[str, Any], report: Report, code: int) -> str:
    parts = [", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)]
    parts.append("\n".join(f"{name}: {value}" for name, value in report.settings.items()))
    parts += [f"{title}\n\n{table(rows)}" for title, rows in report.tables.items()]
    parts.append("\n".join(_of_promise(promise) for promise in report.promises))
    parts += report.notes
    if report.lateness:
        worst = max(report.lateness, key=lambda late: late.p99_s)
        parts.append(
            f"The generator's own lateness, at worst: p50 {worst.p50_s * 1e3:.1f}, p99 {worst.p99_s * 1e3:.1f}, "
            f"most {worst.most_s * 1e3:.1f} ms."
        )
    parts.append(f"verdict: {_VERDICTS[code]}")
    return "\n\n".join(parts)


def _of_promise(promise: Promise) -> str:
    return f"{'kept  ' if promise.kept else 'BROKEN'}  {promise.says}: {promise.found}"


_VERDICTS = {
    KEPT: "kept",
    BROKEN: "BROKEN",
    INVALID: "INVALID, the generator was late: this machine was too busy for the figures to mean anything",
}
