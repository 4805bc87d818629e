"""How a run went: in one line, what is wrong with it, and an exit code."""

import math
from collections.abc import Iterable

from locust.env import Environment
from locust.stats import StatsEntry, StatsError

from crowd import generator
from crowd.figures import BrokenPromise
from crowd.settings import Settings
from crowd.targets import Target

KEPT, MISSED, DOUBTFUL = 0, 1, 2
"""DOUBTFUL: objectives were asked for, and the generator was too busy for the figures to mean anything."""


def told(environment: Environment) -> str:
    rows = list(environment.stats.entries.values())
    failed = sum(row.num_failures for row in rows)
    tokens = sum(row.total_content_length for row in rows if row.method == "tokens")
    total = environment.stats.total
    lasted_s = max((total.last_request_timestamp or total.start_time) - total.start_time, 1e-9)
    said = {what: sum(row.num_requests for row in rows if row.method == what) for what in _BESIDE}
    return (
        f"{total.num_requests - failed} answered, {', '.join(f'{count} {what}' for what, count in said.items())}, "
        f"{failed} failed; {tokens} tokens, {tokens / lasted_s:.0f} a second"
    )


_BESIDE = ("replayed", "refused", "hung up", "cut off")


def complaints(environment: Environment) -> list[str]:
    found = [StatsError.parse_error(each.error) for each in environment.stats.errors.values()]
    found = [each for each in found if each.startswith(BrokenPromise.__name__)] + missed(environment)
    doubt = generator.complaint(environment)
    return [*found, f"THE GENERATOR WAS THE LIMIT: {doubt}"] if doubt else found


def missed(environment: Environment) -> list[str]:
    """Objectives that were not met."""
    targets = Settings.of(environment).slo
    rows = list(environment.stats.entries.values())
    said = (_share_missed(rows, each) if each.seconds is None else _time_missed(rows, each) for each in targets)
    return [each for each in said if each]


def code(environment: Environment) -> int | None:
    """`None` leaves it to Locust, which counts failures."""
    if not Settings.of(environment).slo:
        return None
    if environment.stats.errors:
        return MISSED
    if generator.complaint(environment):
        return DOUBTFUL
    return MISSED if missed(environment) else KEPT


def _share_missed(rows: list[StatsEntry], target: Target) -> str:
    """As the service counts: what was refused for a tenant's own limits is neither good nor bad."""
    asked = [row for row in rows if row.method == "POST"]
    good = sum(row.num_requests - row.num_failures for row in asked)
    ours = [row for row in rows if row.method == "refused" and not row.name.startswith("429")]
    bad = sum(row.num_failures for row in asked) + sum(row.num_requests for row in ours)
    percent = 100 * good / max(good + bad, 1)
    return "" if percent >= target.percent else f"missed: {target.name} {percent:.2f} %, not {target.percent:g} %"


def _time_missed(rows: list[StatsEntry], target: Target) -> str:
    assert target.seconds is not None
    found_ms = _percentile((row for row in rows if row.method == target.name), target.percent)
    if found_ms <= target.seconds * 1e3:
        return ""
    return f"missed: {target.name} {found_ms:.0f} ms at p{target.percent:g}, not {target.seconds * 1e3:g} ms"


def _percentile(rows: Iterable[StatsEntry], percent: float) -> float:
    """Over all kinds of callers; Locust keeps two digits. Without any, nothing was met."""
    times: dict[int, int] = {}
    for row in rows:
        for value_ms, count in row.response_times.items():
            times[value_ms] = times.get(value_ms, 0) + count
    rank = math.ceil(sum(times.values()) * percent / 100)
    for value_ms in sorted(times):
        rank -= times[value_ms]
        if rank <= 0:
            return value_ms
    return math.inf
