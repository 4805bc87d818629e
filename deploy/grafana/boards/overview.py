"""Is it well?"""

from deploy.grafana.panel import Board, Panel, Query, Row, State
from deploy.grafana.queries import MODEL, OURS, OUTCOMES, quantile, quantiles, rate
from deploy.slo import OBJECTIVES, TPOT_S, TTFT_S, Objective


def _budget(each: Objective) -> Panel:
    return Panel(
        f"{each.name} left (good: > 50 %)",
        f"Of the budget. The promise: {each.said}, over 30 days, or as long as Prometheus remembers. Below 0 it is "
        "broken: change nothing that need not be changed.",
        "percentunit",
        (Query(f"slo:{each.name}_budget:remaining_ratio"),),
        "stat",
        4,
        (0.5, 0.1),
    )


def _burning(each: Objective) -> Panel:
    burn = "slo:{0}_errors:ratio_rate{1} / {2:g}"
    return Panel(
        f"{each.name}: burn rate (good: under 1)",
        "At 1 the budget lasts exactly 30 days. Pages come at 14.4 over an hour, and at 6 over six.",
        "none",
        tuple(Query(burn.format(each.name, window, each.budget), window) for window in ("5m", "1h", "6h")),
        bounds=(1, 14.4),
    )


OVERVIEW = Board(
    "overview",
    "Overview & SLO",
    "Is it well? What the promises have left, what is wrong now, and how much is going on.",
    (
        Row(
            "Is it well?",
            (
                *map(_budget, OBJECTIVES),
                Panel(
                    "Replicas ready (good: all)",
                    "At 0 every call is refused. See the dashboard Cluster.",
                    "short",
                    (Query("sum(max by (replica) (gllm_replica_ready))"),),
                    "stat",
                    4,
                    (1, 0.5),
                ),
                Panel(
                    "Alerts firing (good: 0)",
                    "Without the watchdog, which always fires. The table below names them.",
                    "short",
                    (Query('count(ALERTS{alertstate="firing", alertname!="Watchdog"}) or vector(0)'),),
                    "stat",
                    4,
                    (1, 2),
                ),
                Panel(
                    "Loop lag p99 (good: < 25 ms)",
                    "How late the gateways give a task its turn. Over 250 ms they have too much to do: start more of "
                    "them.",
                    "s",
                    (Query(quantile(0.99, "gllm_event_loop_lag_seconds")),),
                    "stat",
                    4,
                    (0.025, 0.25),
                ),
            ),
        ),
        Row(
            "What is wrong, and what is going on?",
            (
                Panel(
                    "Alerts (good: the Watchdog alone)",
                    "Pending ones fire if they last. docs/runbook/NAME.md says what to do. Without the Watchdog no "
                    "alert would reach anybody: see to Prometheus first.",
                    "short",
                    (Query("sort_desc(count by (alertname, severity, alertstate) (ALERTS))"),),
                    "table",
                    states=(
                        State("alertname", "alert"),
                        State("severity", "severity"),
                        State("alertstate", "state"),
                        State("Value", "how many"),
                    ),
                ),
                Panel(
                    "Calls by how they ended (good: all green)",
                    "Blue and purple are the callers' own doing; yellow to red is ours. The dashboard Gateway has the "
                    "reasons.",
                    "reqps",
                    (Query(rate("gllm_request_outcomes_total", OURS, "outcome"), "{{outcome}}"),),
                    stacked=True,
                    colours=OUTCOMES,
                ),
                Panel(
                    "Tokens a second (good: level at full load)",
                    "Falling while calls wait: engines are slower than they were (dashboard Engines).",
                    "short",
                    (
                        Query(rate("gllm_prompt_tokens_total", OURS), "prompts"),
                        Query(rate("gllm_generated_tokens_total", OURS), "answers"),
                    ),
                ),
            ),
        ),
        Row(
            "How does it feel to callers?",
            (
                Panel(
                    f"Time to first token (good: p99 under {TTFT_S:g} s)",
                    "Of streams. If waiting in line is most of it (dashboard Gateway), add replicas. Points lead to "
                    "traces.",
                    "s",
                    quantiles("gllm_time_to_first_token_seconds", OURS, exemplars=True),
                    bounds=(1, TTFT_S),
                ),
                Panel(
                    f"Time per token (good: p99 under {TPOT_S:g} s)",
                    "Of streams. If it grows, engines have too much at once (dashboard Engines).",
                    "s",
                    quantiles("gllm_time_per_output_token_seconds", OURS, exemplars=True),
                    bounds=(0.05, TPOT_S),
                ),
                Panel(
                    "Promises broken, in 5 minutes (good: under 0.5 %)",
                    "The share of calls, or of streams, that was not as it should be. What lies above its own promise "
                    "burns its budget.",
                    "percentunit",
                    tuple(Query(f"slo:{each.name}_errors:ratio_rate5m", each.name) for each in OBJECTIVES),
                    bounds=(0.005, 0.05),
                ),
            ),
        ),
        Row("How fast are the budgets burning?", tuple(map(_burning, OBJECTIVES))),
    ),
    (MODEL,),
)
