"""The tables of a run, as rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.cost.gateway import POLICIES
from bench.cost.results import DIRECT, GLLM, Repeats, Results, extra, median, middle, ratio, spread
from bench.figures import Row

FIRST = "nginx"
"""What the others are compared with."""


@dataclass(frozen=True)
class Goal:
    what: str
    wanted: str
    found: str
    kept: bool | None
    """None: not measured, or nothing to compare with."""


def _found(results: Results, name: str) -> float | None:
    return median(results.gateways.get(GLLM, []), name)


def added(repeats: Repeats, direct: Repeats, name: str) -> float | None:
    """To what the same request takes where nobody is between, in the same repeat."""
    pairs = zip(repeats, direct, strict=False)
    each: Repeats = [{name: mine[name] - theirs[name]} for mine, theirs in pairs if name in mine and name in theirs]
    return median(each, name)


def peers(results: Results) -> list[Row]:
    gateways = results.gateways
    nginx, direct = gateways.get(FIRST, []), gateways.get(DIRECT, [])
    return [
        {
            "": name,
            "added p50 ms": _digits(added(repeats, direct, "alone_p50_ms")),
            "p99 ms": _digits(added(repeats, direct, "alone_p99_ms")),
            "requests/s": median(repeats, "requests_per_s"),
            "CPU µs/request": median(repeats, "us_per_request"),
            "least-most": spread(repeats, "us_per_request"),
            f"x {FIRST}": _digits(ratio(repeats, nginx, "us_per_request")),
            "gateway's core": _digits(median(repeats, "gateway_cores")),
            "others' core": _digits(median(repeats, "load_and_engine_cores")),
            "strangers": _digits(median(repeats, "strangers_cores")),
        }
        for name, repeats in gateways.items()
    ]


def streams(results: Results) -> list[Row]:
    nginx = results.gateways.get(FIRST, [])
    return [
        {
            "": name,
            "tokens/s, as fast as they can": median(repeats, "tokens_per_s"),
            "CPU µs/token": median(repeats, "us_per_token"),
            "tokens/read": median(repeats, "tokens_per_read"),
            "paced: CPU µs/token": median(repeats, "paced_us_per_token"),
            f"x {FIRST}": _digits(ratio(repeats, nginx, "paced_us_per_token")),
            "tokens/s": median(repeats, "paced_tokens_per_s"),
            "first token p99 ms": median(repeats, "first_token_p99_ms"),
            "gap p99 ms": median(repeats, "gap_p99_ms"),
            "idle: KiB each": median(repeats, "idle_kib_each"),
            "resting MiB": median(repeats, "resting_mib"),
            "failed": sum(int(value) for each in repeats for name, value in each.items() if name.endswith("_failed")),
        }
        for name, repeats in results.gateways.items()
    ]


def policies(results: Results) -> list[Row]:
    without = {policy.name: policy.without for policy in POLICIES}
    return [
        {
            "": name,
            "CPU µs/request": median(repeats, "us_per_request"),
            "half lie in": middle(repeats, "us_per_request"),
            "costs µs": _digits(extra(repeats, results.policies.get(without[name], []), "us_per_request")),
            "beside": without[name] or None,
        }
        for name, repeats in results.policies.items()
    ]


def scale(results: Results, what: str) -> list[Row]:
    sizes = results.scale.get(what, {})
    first = next(iter(sizes.values()), [])
    return [
        {
            what: size,
            "CPU µs/request": median(repeats, "us_per_request"),
            "half lie in": middle(repeats, "us_per_request"),
            "ratio": _digits(ratio(repeats, first, "us_per_request")),
        }
        for size, repeats in sizes.items()
    ]


def waiting(results: Results) -> list[Row]:
    """With as many connections each, whose requests wait or do not."""
    sizes = results.scale.get("waiting", {})
    counts = [name.removesuffix(" waiting") for name in sizes if not name.endswith("not waiting")]
    rows: list[Row] = []
    for count in counts:
        line, free = sizes[f"{count} waiting"], sizes[f"{count} not waiting"]
        rows.append(
            {
                "waiting": count,
                "CPU µs/request": median(line, "us_per_request"),
                "to none waiting": _digits(ratio(line, sizes[f"{counts[0]} waiting"], "us_per_request")),
                "as many connections, none waiting": median(free, "us_per_request"),
                "to those": _digits(ratio(line, free, "us_per_request")),
            }
        )
    return rows


def goals(results: Results) -> list[Goal]:
    direct = results.gateways.get(DIRECT, [])
    mine = results.gateways.get(GLLM, [])
    once = results.gateway
    sglang = results.gateways.get("sglang-router", [])
    rates = ratio(mine, sglang, "requests_per_s")
    grown = _grown(results)
    return [
        _at_most("CPU per request, all policies on", 75, _found(results, "us_per_request"), "µs"),
        _at_least("requests/s at concurrency 64, to sglang-router's", 0.75, rates, ""),
        _at_most("added latency alone, p50", 0.25, added(mine, direct, "alone_p50_ms"), "ms"),
        _at_most("added latency alone, p99", 0.6, added(mine, direct, "alone_p99_ms"), "ms"),
        _at_most("CPU per token, 1,000 paced streams", 30, _found(results, "paced_us_per_token"), "µs"),
        _at_most("their time to first token, p99", 10, _found(results, "first_token_p99_ms"), "ms"),
        _at_most("their gaps off 50 ms, p99", 5, _found(results, "gap_p99_ms"), "ms"),
        _at_least("tokens/s as fast as they can", 120_000, _found(results, "tokens_per_s"), ""),
        _at_least("idle streams in one process", 10_000, once.get("many_idle_streams"), ""),
        _at_most("memory of each of them", 25, once.get("many_idle_kib_each"), "KiB"),
        _at_most("CPU of a prompt of 200 KB", 500, _found(results, "us_per_long_prompt"), "µs"),
        _at_most("event loop's lag at full load, p99 (its bucket's bound)", 5, once.get("lag_p99_ms"), "ms"),
        _at_most("CPU per request at most scale, to that at the least", 1.3, max(grown, default=None), ""),
    ]


def _grown(results: Results) -> Iterator[float]:
    """CPU per request, to that at the smallest size; of those who wait, to as many connections where none does."""
    for what, sizes in results.scale.items():
        first = next(iter(sizes.values()), [])
        for name, repeats in sizes.items():
            waits = what == "waiting"
            beside = sizes.get(name.replace(" waiting", " not waiting"), []) if waits else first
            found = None if name.endswith("not waiting") else ratio(repeats, beside, "us_per_request")
            if found is not None:
                yield found


def steady(results: Results) -> list[Row]:
    """Open loop."""
    repeats = results.gateways.get(GLLM, [])
    parts = [name.removesuffix("_p50_ms") for name in (repeats[0] if repeats else {}) if name.startswith("open_")]
    return [
        {
            "arrivals, of the most": f"{part.removeprefix('open_')} %",
            "p50 ms": _digits(median(repeats, f"{part}_p50_ms")),
            "p99 ms": _digits(median(repeats, f"{part}_p99_ms")),
            "generator late p99 ms": _digits(median(repeats, f"{part}_late_p99_ms")),
        }
        for part in dict.fromkeys(part for part in parts if part.count("_") == 1)
    ]


def goal_rows(found: Sequence[Goal]) -> list[Row]:
    said = {None: "not measured", True: "kept", False: "missed"}
    return [{"": goal.what, "goal": goal.wanted, "found": goal.found, "so": said[goal.kept]} for goal in found]


def _at_most(what: str, bound: float, value: float | None, unit: str) -> Goal:
    return Goal(what, f"≤ {bound:g} {unit}".rstrip(), _said(value, unit), None if value is None else value <= bound)


def _at_least(what: str, bound: float, value: float | None, unit: str) -> Goal:
    return Goal(what, f"≥ {bound:,g} {unit}".rstrip(), _said(value, unit), None if value is None else value >= bound)


def _said(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} {unit}".rstrip() if value >= 1_000 else f"{value:.3g} {unit}".rstrip()


def _digits(value: float | None) -> str | None:
    """Two figures behind the point, where they say something."""
    return None if value is None else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
