"""Who comes, who waits, who is refused and why."""

from deploy.grafana.panel import Board, Panel, Query, Row
from deploy.grafana.queries import MODEL, OURS, OUTCOMES, PAUSED, TENANT, part, quantiles, rate

T = 'tenant=~"$tenant"'

COMING = Row(
    "Coming and waiting",
    (
        Panel(
            "Slots taken (good: under the limit)",
            "At the limit calls wait. Slots idle while calls wait: a circuit is open, or a model is changed.",
            "short",
            (Query("sum(gllm_slots_taken)", "taken"), Query("sum(gllm_slots)", "limit", limit=True)),
        ),
        Panel(
            "Waiting calls (good: far from the limit)",
            "By model. A line is full at the limit, and newcomers are refused: add replicas.",
            "short",
            (
                Query(f"sum by (model) (gllm_queue_requests{{{OURS}}})", "{{model}}"),
                Query("sum(gllm_queue_places)", "limit", limit=True),
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
            "Queue wait (good: p99 under 1 s)",
            "Only of calls that could not begin at once. If it grows day by day, replicas are too few.",
            "s",
            quantiles("gllm_queue_wait_seconds", OURS),
            bounds=(1, 10),
        ),
        Panel(
            "Prompt tokens waiting (good: few)",
            "The work in the line: few calls with long prompts wait as long as many with short ones.",
            "short",
            (Query(f"sum by (model) (gllm_queue_prompt_tokens{{{OURS}}})", "{{model}}"),),
        ),
        Panel(
            "Refused, by reason (good: none of ours)",
            "queue_full, displaced and would_miss_deadline: add replicas. no_replica and circuit_open: see the "
            "dashboard Cluster. request_rate, token_quota and concurrency are limits of tenants, as you have set them.",
            "reqps",
            (Query(rate("gllm_refusals_total", "", "reason"), "{{reason}}"),),
            stacked=True,
        ),
    ),
)

TENANTS = Row(
    "Fair to tenants?",
    (
        Panel(
            "Tokens by tenant (good: as their weights)",
            "A second, prompts and answers, as settled. Shares count only while calls wait. Beyond a hundred tenants "
            "the rest is `other`.",
            "short",
            (Query(rate("gllm_tenant_tokens_total", T, "tenant"), "{{tenant}}"),),
            width=6,
            stacked=True,
        ),
        Panel(
            "Calls by tenant (good: nobody crowds out)",
            "Many calls and few tokens: short prompts, or refusals. A tenant that sends too many wants a limit.",
            "reqps",
            (Query(rate("gllm_tenant_requests_total", T, "tenant"), "{{tenant}}"),),
            width=6,
            stacked=True,
        ),
        Panel(
            "Not answered well, by tenant (good: 0)",
            "One tenant alone: its own limits or errors. All of them: ours.",
            "reqps",
            (Query(rate("gllm_tenant_requests_total", f'{T}, outcome!="ok"', "tenant"), "{{tenant}}"),),
            width=6,
        ),
        Panel(
            "Limits met (good: what you have set)",
            "Refusals by the limit of a tenant. `logins`: somebody guesses keys, or has an old one.",
            "reqps",
            (Query(rate("gllm_rate_limits_met_total", "", "limit"), "{{limit}}"),),
            width=6,
        ),
    ),
)

FAILURES = Row(
    "When engines fail",
    (
        Panel(
            "Failed attempts, by kind (good: 0)",
            "Many kinds from one replica: that engine. One kind from all: what they share.",
            "reqps",
            (Query(rate("llm_engine_errors_total", "", "error_type"), "{{error_type}}"),),
            width=6,
            stacked=True,
        ),
        Panel(
            "Second attempts (good: few)",
            "Retries after a failure, and hedges beside streams that are slow to begin (HEDGE_SHARE). `denied`: the "
            "budget is spent, and callers see the errors.",
            "reqps",
            (
                Query(rate("gllm_retries_total"), "retries"),
                Query(rate("gllm_retries_denied_total"), "denied"),
                Query(rate("gllm_hedges_total", "", "result"), "hedges {{result}}"),
            ),
            width=6,
        ),
        Panel(
            "Retry budget (good: over 0)",
            "Retries that may still be made now. At 0 errors reach callers instead of making a storm.",
            "short",
            (Query("min by (instance) (gllm_retry_budget)", "{{instance}}"),),
            width=6,
        ),
        Panel(
            "Circuits (good: all take calls)",
            "A replica that fails again and again is given pauses. Its log says why: `gllm logs WORKER`.",
            "short",
            (Query("max by (replica) (gllm_circuit_open)", "{{replica}}"),),
            "state-timeline",
            6,
            states=PAUSED,
        ),
    ),
)

KEPT = Row(
    "Where calls go, and what is kept",
    (
        Panel(
            "Why that replica (good: few `_away`)",
            "`session` and `prefix`: its cache has the beginning. `_away`: that replica had too much to do. `only`: no "
            "other had room.",
            "reqps",
            (Query(rate("gllm_routed_total", "", "reason"), "{{reason}}"),),
            width=6,
            stacked=True,
        ),
        Panel(
            "Prompt tokens in a cache (good: more)",
            "Share of prompt tokens that engines had computed before. ROUTING_POLICY=prefix raises it.",
            "percentunit",
            (
                Query(
                    part(rate("gllm_cached_prompt_tokens_total", OURS), rate("gllm_prompt_tokens_total", OURS)),
                    "cached",
                ),
            ),
            width=6,
        ),
        Panel(
            "Idempotency keys (good: no store_down)",
            "First executions, replays and attachments. `store_down`: Redis is away, and calls with a key get 503.",
            "reqps",
            (Query(rate("gllm_idempotency_total", "", "result"), "{{result}}"),),
            width=6,
            stacked=True,
        ),
        Panel(
            "Usage not written (good: under 5 s)",
            "For how long: what is in memory only is lost by a kill. It grows when the disk is full, or slow.",
            "s",
            (Query("max by (instance) (gllm_ledger_age_seconds)", "{{instance}}"),),
            width=6,
            bounds=(5, 60),
        ),
    ),
)

CALLS = Row(
    "All calls",
    (
        Panel(
            "Calls by how they ended (good: all green)",
            "Blue and purple are the callers' own doing; yellow to red is ours.",
            "reqps",
            (Query(rate("gllm_request_outcomes_total", OURS, "outcome"), "{{outcome}}"),),
            stacked=True,
            colours=OUTCOMES,
        ),
        Panel(
            "Whole calls (good: as long as their answers)",
            "From a call's head to its last byte, streams or not. Long answers take long; see time per token.",
            "s",
            quantiles("llm_request_duration_seconds", 'endpoint=~"/v1/.+"'),
        ),
        Panel(
            "Held for running calls (good: back to 0)",
            "Reservations of tokens, and executions for idempotency keys. Those that outlast their calls are a fault "
            "of ours: please report it.",
            "short",
            (Query("sum(gllm_reservations)", "reservations"), Query("sum(gllm_keyed_runs)", "keyed runs")),
        ),
    ),
)

GATEWAY = Board(
    "gateway",
    "Gateway",
    "Who comes, who waits, who is refused and why.",
    (CALLS, COMING, TENANTS, FAILURES, KEPT),
    (MODEL, TENANT),
)
