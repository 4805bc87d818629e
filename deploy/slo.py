"""What this service promises. The one place: rules, alerts, dashboards and documents are made of these.

A target of time must be a boundary of its histogram's buckets; a test sees to it.
"""

from dataclasses import dataclass

GOOD = "ok"
BAD = ("upstream_failed", "interrupted", "queue_full", "deadline", "draining")
"""Our doing. What is a client's own (client_error, rate_limited, client_gone) is not counted at all."""

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
PERIOD = "30d"
LEAST_EVENTS = 20
"""In the long window. With fewer, one failure would be a burning budget."""


@dataclass(frozen=True)
class Burn:
    """How fast the budget of `PERIOD` is being spent, seen over a long and a short window."""

    factor: float
    long: str
    short: str
    severity: str
    said: str


BURNS = (
    Burn(14.4, "1h", "5m", "page", "2 % of the budget of 30 days went within an hour"),
    Burn(6, "6h", "30m", "page", "5 % of the budget of 30 days went within six hours"),
    Burn(1, "3d", "6h", "ticket", "10 % of the budget of 30 days went within three days"),
)


@dataclass(frozen=True)
class Objective:
    name: str
    alert: str
    share: float
    """Of events that must be good."""
    said: str
    bad: str
    """PromQL of bad events in `{window}`."""
    all: str

    @property
    def budget(self) -> float:
        return round(1 - self.share, 6)


def _slow(name: str, alert: str, share: float, said: str, histogram: str, seconds: float) -> Objective:
    counted = f"sum(rate({histogram}_count[{{window}}]))"
    quick = f'sum(rate({histogram}_bucket{{{{le="{seconds:g}"}}}}[{{window}}]))'
    return Objective(name, alert, share, said, f"({counted} - {quick})", counted)


def _outcomes(outcomes: str) -> str:
    return f'sum(rate(gllm_request_outcomes_total{{{{outcome=~"{outcomes}"}}}}[{{window}}]))'


TTFT_S = 2.5
TPOT_S = 0.1

OBJECTIVES = (
    Objective(
        "availability",
        "AvailabilityBudgetBurns",
        0.995,
        "99.5 % of calls are answered well",
        _outcomes("|".join(BAD)),
        _outcomes("|".join((GOOD, *BAD))),
    ),
    _slow(
        "ttft",
        "FirstTokenBudgetBurns",
        0.99,
        f"99 % of streams begin within {TTFT_S:g} s",
        "gllm_time_to_first_token_seconds",
        TTFT_S,
    ),
    _slow(
        "tpot",
        "TokenTimeBudgetBurns",
        0.99,
        f"99 % of streams take at most {TPOT_S:g} s a token",
        "gllm_time_per_output_token_seconds",
        TPOT_S,
    ),
)
