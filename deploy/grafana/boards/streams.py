"""How streams begin, go on and end."""

from deploy.grafana.panel import Board, Panel, Query, Row
from deploy.grafana.queries import MODEL, OURS, OUTCOMES, part, quantiles, rate
from deploy.slo import TPOT_S, TTFT_S

STREAMS = Board(
    "streams",
    "Streams",
    "How streams begin, go on and end.",
    (
        Row(
            "Beginning",
            (
                Panel(
                    f"Time to first token (good: p99 under {TTFT_S:g} s)",
                    "From a request's head to its first event. Compare with the wait in line (dashboard Gateway) and "
                    "with the engines' own (dashboard Engines). Points lead to traces.",
                    "s",
                    quantiles("gllm_time_to_first_token_seconds", OURS, exemplars=True),
                    width=12,
                    bounds=(1, TTFT_S),
                ),
                Panel(
                    "Time to first token, all of them (good: one low band)",
                    "Two bands: two kinds of prompts, or two kinds of replicas. Points lead to traces.",
                    "s",
                    (Query(rate("gllm_time_to_first_token_seconds_bucket", OURS, "le"), "{{le}}", exemplars=True),),
                    "heatmap",
                    12,
                ),
            ),
        ),
        Row(
            "Going on",
            (
                Panel(
                    "Open streams (good: as many as callers want)",
                    "Each holds a slot. Level at the limit of slots: others wait (dashboard Gateway).",
                    "short",
                    (Query("sum by (instance) (gllm_streams_open)", "{{instance}}"),),
                ),
                Panel(
                    f"Time per token (good: p99 under {TPOT_S:g} s)",
                    "Mean of each stream, over streams. If it grows, engines have too much at once: lower "
                    "MAX_CONCURRENT_REQUESTS, or add replicas.",
                    "s",
                    quantiles("gllm_time_per_output_token_seconds", OURS, exemplars=True),
                    bounds=(0.05, TPOT_S),
                ),
                Panel(
                    "Added to an event (good: p99 under 1 ms)",
                    "The gateway's own part, from an event's arrival to its being written; one in 64 is measured. More "
                    "says that its core is busy, or that readers are slow.",
                    "s",
                    quantiles("gllm_event_delay_seconds"),
                    bounds=(0.001, 0.01),
                ),
            ),
        ),
        Row(
            "Ending",
            (
                Panel(
                    "Streams by how they ended (good: all green)",
                    "interrupted: an engine died, and no other could go on. client_gone: the caller hung up, and the "
                    "engine was stopped.",
                    "reqps",
                    (Query(rate("gllm_streams_total", "", "outcome"), "{{outcome}}"),),
                    stacked=True,
                    colours=OUTCOMES,
                ),
                Panel(
                    "Interrupted (good: under 0.1 %)",
                    "Share of streams that broke off. Over 1 % there is an alert; the dashboard Cluster shows which "
                    "replica went.",
                    "percentunit",
                    (
                        Query(
                            part(rate("gllm_streams_total", 'outcome="interrupted"'), rate("gllm_streams_total")),
                            "interrupted",
                        ),
                    ),
                    bounds=(0.001, 0.01),
                ),
                Panel(
                    "Taken over, cut off (good: 0)",
                    "Taken over: a replica died, another one went on, and the caller saw nothing of it. Cut off: a "
                    "caller stopped reading, and would have held its slot.",
                    "reqps",
                    (
                        Query(rate("gllm_streams_taken_over_total"), "taken over"),
                        Query(rate("gllm_slow_readers_total"), "slow readers cut off"),
                    ),
                ),
            ),
        ),
    ),
    (MODEL,),
)
