"""The dashboards. The answer to "is it well?" stands first; under it, where to look if it is not."""

from deploy.grafana.panel import RATE, Board, Panel, Query, Row, Variable
from deploy.slo import OBJECTIVES, TPOT_S, TTFT_S, Objective

MODEL = Variable("model", "label_values(gllm_request_outcomes_total, model)")
TENANT = Variable("tenant", "label_values(gllm_tenant_requests_total, tenant)")
INSTANCE = Variable("instance", 'label_values(up{job="gateway"}, instance)')
ENGINE = Variable("engine", "label_values(vllm:num_requests_running, instance)")


def rate(name: str, labels: str = "", by: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}(rate({name}{f'{{{labels}}}' if labels else ''}[{RATE}]))"


def quantile(share: float, name: str, labels: str = "", by: str = "") -> str:
    """Of a histogram; over `by` apart."""
    return f"histogram_quantile({share:g}, {rate(f'{name}_bucket', labels, ', '.join(filter(None, (by, 'le'))))})"


def quantiles(name: str, labels: str = "", *, exemplars: bool = False) -> tuple[Query, ...]:
    return tuple(Query(quantile(each, name, labels), f"p{each * 100:g}", exemplars) for each in (0.5, 0.9, 0.99))


def part(some: str, everything: str) -> str:
    """0 where there is nothing to divide."""
    return f"{some} / ({everything} > 0) or {everything} * 0"


OURS = 'model=~"$model"'


def _budget(each: Objective) -> Panel:
    return Panel(
        f"{each.name}: budget left (good: over 50 %)",
        f"{each.said}, over 30 days, or as long as Prometheus remembers. At 0 the promise is broken: change nothing "
        "that need not be changed.",
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
                    (Query("sum(gllm_replica_ready)"),),
                    "stat",
                    4,
                    (1, 0.5),
                ),
                Panel(
                    "Alerts firing (good: 0)",
                    "Without the watchdog, which always fires. Each has a page in docs/runbook.",
                    "short",
                    (Query('count(ALERTS{alertstate="firing", alertname!="Watchdog"}) or vector(0)'),),
                    "stat",
                    4,
                    (1, 2),
                ),
                Panel(
                    "Event loop p99 (good: under 5 ms)",
                    "How late the gateways give a task its turn. Over 250 ms they have too much to do.",
                    "s",
                    (Query(quantile(0.99, "gllm_event_loop_lag_seconds")),),
                    "stat",
                    4,
                    (0.025, 0.25),
                ),
            ),
        ),
        Row("How fast are the budgets burning?", tuple(map(_burning, OBJECTIVES))),
        Row(
            "What is going on?",
            (
                Panel(
                    "Calls by how they ended (good: all ok)",
                    "client_error, rate_limited and client_gone are the callers' own doing; the others are ours.",
                    "reqps",
                    (Query(rate("gllm_request_outcomes_total", OURS, "outcome"), "{{outcome}}"),),
                    stacked=True,
                ),
                Panel(
                    f"Time to first token (good: p99 under {TTFT_S:g} s)",
                    "Of streams. If waiting in line is most of it (dashboard Gateway), add replicas.",
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
            ),
        ),
    ),
    (MODEL,),
)

GATEWAY = Board(
    "gateway",
    "Gateway",
    "Who comes, who waits, who is refused and why.",
    (
        Row(
            "Coming and waiting",
            (
                Panel(
                    "Slots taken (good: under the limit)",
                    "At the limit calls wait. Slots idle while calls wait: a circuit is open, or a model is changed.",
                    "short",
                    (Query("sum(gllm_slots_taken)", "taken"), Query("max(gllm_slots)", "limit")),
                ),
                Panel(
                    "Waiting calls (good: short)",
                    "By model. A line is full at the limit, and newcomers are refused.",
                    "short",
                    (
                        Query(f"sum by (model) (gllm_queue_requests{{{OURS}}})", "{{model}}"),
                        Query("max(gllm_queue_places)", "limit"),
                    ),
                ),
                Panel(
                    "Who waits longest (good: under 5 s)",
                    "Age of the oldest call in the line. Over 30 s there is an alert.",
                    "s",
                    (Query(f"max by (model) (gllm_queue_oldest_seconds{{{OURS}}})", "{{model}}"),),
                    bounds=(5, 30),
                ),
                Panel(
                    "Wait of those that had to (good: p99 under 1 s)",
                    "Only calls that could not begin at once are in it.",
                    "s",
                    quantiles("gllm_queue_wait_seconds", OURS),
                    bounds=(1, 10),
                ),
                Panel(
                    "Prompt tokens waiting (good: short)",
                    "The work in the line. Few calls with long prompts wait as long as many with short ones.",
                    "short",
                    (Query(f"sum by (model) (gllm_queue_prompt_tokens{{{OURS}}})", "{{model}}"),),
                ),
                Panel(
                    "Refused, by reason (good: none of ours)",
                    "queue_full and would_miss_deadline: add replicas. request_rate, token_quota and concurrency are "
                    "limits of tenants, which hold as they are meant to.",
                    "reqps",
                    (
                        Query(
                            f"{rate('gllm_refusals_total', '', 'reason')} > 0 or {rate('gllm_refusals_total')}",
                            "{{reason}}",
                        ),
                    ),
                    stacked=True,
                ),
            ),
        ),
        Row(
            "Fair to tenants?",
            (
                Panel(
                    "Tokens by tenant (good: as their weights)",
                    "Prompt and answer, as settled. Beyond a hundred tenants the rest is `other`.",
                    "short",
                    (
                        Query(
                            f'sum by (tenant) (rate(gllm_tenant_tokens_total{{tenant=~"$tenant"}}[{RATE}]))',
                            "{{tenant}}",
                        ),
                    ),
                    stacked=True,
                ),
                Panel(
                    "Calls not answered well, by tenant (good: none)",
                    "One tenant alone: its own limits or errors. All of them: ours.",
                    "reqps",
                    (
                        Query(
                            rate("gllm_tenant_requests_total", 'tenant=~"$tenant", outcome!="ok"', "tenant, outcome"),
                            "{{tenant}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Limits met (good: what you have set)",
                    "Refusals by the limit of a tenant, or of log-ins with wrong keys.",
                    "reqps",
                    (Query(rate("gllm_rate_limits_met_total", "", "limit"), "{{limit}}"),),
                ),
            ),
        ),
        Row(
            "When engines fail",
            (
                Panel(
                    "Failed attempts, by kind (good: none)",
                    "Many kinds from one replica: that engine. One kind from all: what they share.",
                    "reqps",
                    (
                        Query(rate("llm_engine_errors_total", "", "error_type"), "{{error_type}}"),
                        Query(rate("gllm_retries_total"), "tried elsewhere"),
                    ),
                ),
                Panel(
                    "Retry budget (good: over 0)",
                    "Retries that may still be made. At 0 errors reach callers instead of making a storm.",
                    "short",
                    (
                        Query("min by (instance) (gllm_retry_budget)", "{{instance}}"),
                        Query(rate("gllm_retries_denied_total"), "denied"),
                    ),
                ),
                Panel(
                    "Circuits open (good: 0)",
                    "Replicas that fail again and again are given pauses.",
                    "short",
                    (Query("max by (replica) (gllm_circuit_open)", "{{replica}}"),),
                    bounds=(0.5, 1),
                ),
            ),
        ),
        Row(
            "Where calls go, and what is kept",
            (
                Panel(
                    "Why that replica (good: sessions and prefixes at home)",
                    "`_away`: its own replica had too much to do.",
                    "reqps",
                    (Query(rate("gllm_routed_total", "", "reason"), "{{reason}}"),),
                ),
                Panel(
                    "Prompt tokens found in a cache (good: more)",
                    "Share of prompt tokens that engines had computed before. ROUTING_POLICY=prefix raises it.",
                    "percentunit",
                    (
                        Query(
                            part(rate("gllm_cached_prompt_tokens_total", OURS), rate("gllm_prompt_tokens_total", OURS)),
                            "cached",
                        ),
                    ),
                ),
                Panel(
                    "Idempotency keys (good: no store_down)",
                    "First executions, replays and attachments. `store_down`: Redis is away.",
                    "reqps",
                    (Query(rate("gllm_idempotency_total", "", "result"), "{{result}}"),),
                ),
                Panel(
                    "Ledger: time since written (good: under 5 s)",
                    "Usage in memory only would be lost by a kill. It grows when the disk is full.",
                    "s",
                    (Query("max by (instance) (gllm_ledger_age_seconds)", "{{instance}}"),),
                    bounds=(5, 60),
                ),
            ),
        ),
    ),
    (MODEL, TENANT),
)

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
                    "From a request's head to its first event.",
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
                    "Each holds a slot.",
                    "short",
                    (Query("sum by (instance) (gllm_streams_open)", "{{instance}}"),),
                ),
                Panel(
                    f"Time per token (good: p99 under {TPOT_S:g} s)",
                    "Mean of each stream, over streams.",
                    "s",
                    quantiles("gllm_time_per_output_token_seconds", OURS, exemplars=True),
                    bounds=(0.05, TPOT_S),
                ),
                Panel(
                    "Added to an event (good: p99 under 1 ms)",
                    "The gateway's own part, from an event's arrival to its being written; one in 64 is measured.",
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
                    "Streams by how they ended (good: ok)",
                    "interrupted: an engine died. client_gone: the caller hung up, and the engine was stopped.",
                    "reqps",
                    (Query(rate("gllm_streams_total", "", "outcome"), "{{outcome}}"),),
                    stacked=True,
                ),
                Panel(
                    "Interrupted (good: under 1 %)",
                    "Share of streams that broke off. Over 1 % there is an alert.",
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
                    "Slow readers cut off (good: none)",
                    "Callers that stopped reading. They would hold slots.",
                    "reqps",
                    (Query(rate("gllm_slow_readers_total"), "cut off"),),
                ),
            ),
        ),
    ),
    (MODEL,),
)

E = 'instance=~"$engine"'

ENGINES = Board(
    "engines",
    "Engines",
    "vLLM and Transformers side by side: both speak the same names.",
    (
        Row(
            "Work",
            (
                Panel(
                    "Running (good: even)",
                    "Sequences in each engine's batch.",
                    "short",
                    (Query(f"sum by (instance) (vllm:num_requests_running{{{E}}})", "{{instance}}"),),
                ),
                Panel(
                    "Waiting inside engines (good: 0)",
                    "What waits there waits in no fair order. Lower MAX_CONCURRENT_REQUESTS, or let it adapt.",
                    "short",
                    (Query(f"sum by (instance) (vllm:num_requests_waiting{{{E}}})", "{{instance}}"),),
                    bounds=(1, 10),
                ),
                Panel(
                    "Tokens made (good: level at full load)",
                    "By engine.",
                    "short",
                    (Query(rate("vllm:generation_tokens_total", E, "instance"), "{{instance}}"),),
                ),
            ),
        ),
        Row(
            "Memory",
            (
                Panel(
                    "KV cache in use (good: under 95 %)",
                    "Full, and with preemptions beside it: work is done twice.",
                    "percentunit",
                    (Query(f"max by (instance) (vllm:kv_cache_usage_perc{{{E}}})", "{{instance}}"),),
                    bounds=(0.85, 0.95),
                ),
                Panel(
                    "Preemptions (good: none)",
                    "Sequences put back to make room for others.",
                    "cps",
                    (Query(rate("vllm:num_preemptions_total", E, "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Prefix cache hits (good: more)",
                    "Share of prompt tokens that were there already.",
                    "percentunit",
                    (
                        Query(
                            f"{rate('vllm:prefix_cache_hits_total', E, 'instance')} / "
                            f"({rate('vllm:prefix_cache_queries_total', E, 'instance')} > 0) or "
                            f"{rate('vllm:prefix_cache_queries_total', E, 'instance')} * 0",
                            "{{instance}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "First token at the engine (good: near the gateway's)",
                    "What the gateway has more is waiting in line.",
                    "s",
                    (
                        Query(quantile(0.99, "vllm:time_to_first_token_seconds", E, "instance"), "{{instance}} p99"),
                        Query(quantile(0.99, "gllm_time_to_first_token_seconds"), "gateway p99"),
                    ),
                ),
                Panel(
                    f"Between tokens (good: p99 under {TPOT_S:g} s)",
                    "Grows with the batch, and with long prompts beside it.",
                    "s",
                    (Query(quantile(0.99, "vllm:inter_token_latency_seconds", E, "instance"), "{{instance}} p99"),),
                    bounds=(0.05, TPOT_S),
                ),
                Panel(
                    "Sequences by how they ended (good: stop and length)",
                    "abort: the caller hung up, or its time was over.",
                    "cps",
                    (Query(rate("vllm:request_success_total", E, "finished_reason"), "{{finished_reason}}"),),
                    stacked=True,
                ),
            ),
        ),
    ),
    (ENGINE,),
)

CLUSTER = Board(
    "cluster",
    "Cluster",
    "Replicas, workers, their GPUs, and changes of models.",
    (
        Row(
            "Replicas, as the gateways see them",
            (
                Panel(
                    "Ready (good: 1)",
                    "0: it has not answered its probes. `gllm logs WORKER` says why.",
                    "short",
                    (Query("min by (replica) (gllm_replica_ready)", "{{replica}}"),),
                ),
                Panel(
                    "Calls at each (good: even)",
                    "Of all gateways together, with what they allow.",
                    "short",
                    (
                        Query("sum by (replica) (gllm_replica_running)", "{{replica}}"),
                        Query("sum(gllm_replica_slots)", "slots of all"),
                    ),
                ),
                Panel(
                    "As the engines tell (good: nothing waits)",
                    "Their own account, whoever sent it.",
                    "short",
                    (
                        Query("max by (replica) (gllm_replica_engine_running)", "{{replica}} running"),
                        Query("max by (replica) (gllm_replica_engine_waiting)", "{{replica}} waiting"),
                    ),
                ),
            ),
        ),
        Row(
            "Workers and models",
            (
                Panel(
                    "Workers by state (good: ready)",
                    "loading and draining pass; failed and lost do not.",
                    "short",
                    (Query("max by (state) (gllm_workers)", "{{state}}"),),
                ),
                Panel(
                    "Changes of models (good: done)",
                    "failed: everything serves again what it did. GET /admin/swap says why.",
                    "short",
                    (
                        Query(f"sum by (outcome) (increase(gllm_swaps_total[{RATE}]))", "{{outcome}}"),
                        Query("max(gllm_swap_running)", "running"),
                    ),
                ),
                Panel(
                    "GPUs leased, by their workers' state (good: ready)",
                    "A lease ends when the memory is seen to be free.",
                    "short",
                    (Query("max by (state) (gllm_gpus_leased)", "{{state}}"),),
                ),
            ),
        ),
    ),
)

TELEMETRY = Board(
    "telemetry",
    "Telemetry health",
    "Can what the other dashboards say be believed, and what does the gateway itself cost?",
    (
        Row(
            "Is all of it seen?",
            (
                Panel(
                    "Targets that answer (good: all 1)",
                    "0: nothing on the other dashboards is about it.",
                    "short",
                    (Query("min by (job, instance) (up)", "{{job}} {{instance}}"),),
                ),
                Panel(
                    "Spans and log lines lost (good: none)",
                    "The collector is away, or nobody reads the log fast enough.",
                    "cps",
                    (
                        Query(rate("gllm_spans_dropped_total"), "spans"),
                        Query(rate("gllm_log_lines_dropped_total"), "lines"),
                    ),
                ),
                Panel(
                    "Series scraped (good: level)",
                    "Labels are bounded, so it grows with models, tenants and replicas only.",
                    "short",
                    (Query("sum by (job) (scrape_samples_scraped)", "{{job}}"),),
                ),
            ),
        ),
        Row(
            "What does the gateway cost?",
            (
                Panel(
                    "Its own time for a call (good: p99 under 5 ms)",
                    "By phase: parsing, limits, finding a replica, writing. Waiting and engines are not in it.",
                    "s",
                    (
                        Query(
                            quantile(0.99, "gllm_overhead_seconds", 'instance=~"$instance"', "phase"), "{{phase}} p99"
                        ),
                    ),
                    bounds=(0.005, 0.05),
                ),
                Panel(
                    "Event loop lag (good: p99 under 5 ms)",
                    "How late a task gets its turn.",
                    "s",
                    quantiles("gllm_event_loop_lag_seconds", 'instance=~"$instance"'),
                    bounds=(0.005, 0.25),
                ),
                Panel(
                    "CPU (good: under 0.8 of a core)",
                    "A gateway is one process on one core. More of them: --profile scale.",
                    "none",
                    (
                        Query(
                            f'sum by (instance) (rate(process_cpu_seconds_total{{job="gateway"}}[{RATE}]))',
                            "{{instance}}",
                        ),
                    ),
                    bounds=(0.8, 0.95),
                ),
                Panel(
                    "Memory (good: level)",
                    "Resident, by gateway.",
                    "bytes",
                    (Query('max by (instance) (process_resident_memory_bytes{job="gateway"})', "{{instance}}"),),
                ),
            ),
        ),
    ),
    (INSTANCE,),
)

BOARDS = (OVERVIEW, GATEWAY, STREAMS, ENGINES, CLUSTER, TELEMETRY)
