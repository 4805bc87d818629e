"""Can what the other dashboards say be believed, and what does the gateway itself cost?"""

from deploy.grafana.panel import Board, Panel, Query, Row
from deploy.grafana.queries import ANSWERS, INSTANCE, quantile, quantiles, rate

G = 'instance=~"$instance"'
PROCESS = f'job="gateway", {G}'

TELEMETRY = Board(
    "telemetry",
    "Telemetry health",
    "Can what the other dashboards say be believed, and what does the gateway itself cost?",
    (
        Row(
            "Is all of it seen?",
            (
                Panel(
                    "Targets (good: all answer)",
                    "Of what does not answer the other dashboards say nothing: see whether it runs, and whether "
                    "Prometheus reaches it.",
                    "short",
                    (Query("min by (job, instance) (up)", "{{instance}}"),),
                    "state-timeline",
                    6,
                    states=ANSWERS,
                ),
                Panel(
                    "Scrapes take (good: under 1 s)",
                    "The longest of each job. A gateway answers them from a thread of its own; an engine that is slow "
                    "here is busy.",
                    "s",
                    (Query("max by (job) (scrape_duration_seconds)", "{{job}}"),),
                    width=6,
                    bounds=(1, 5),
                ),
                Panel(
                    "Series scraped (good: level)",
                    "Labels are bounded, so it grows with models, tenants and replicas only.",
                    "short",
                    (Query("sum by (job) (scrape_samples_scraped)", "{{job}}"),),
                    width=6,
                ),
                Panel(
                    "Lost spans and log lines (good: 0)",
                    "The collector is away, or nobody reads the log fast enough. Calls go on.",
                    "cps",
                    (
                        Query(rate("gllm_spans_dropped_total"), "spans"),
                        Query(rate("gllm_log_lines_dropped_total"), "lines"),
                    ),
                    width=6,
                ),
            ),
        ),
        Row(
            "What does the gateway cost?",
            (
                Panel(
                    "Own time for a call, p99 (good: under 5 ms)",
                    "By phase: parsing, limits, finding a replica, writing a whole answer. Waiting and engines are not "
                    "in it. More says that the core is busy.",
                    "s",
                    (Query(quantile(0.99, "gllm_overhead_seconds", G, "phase"), "{{phase}}"),),
                    bounds=(0.005, 0.05),
                ),
                Panel(
                    "Event loop lag (good: p99 under 25 ms)",
                    "How late a task gets its turn. Over 250 ms there is an alert: start more gateways.",
                    "s",
                    quantiles("gllm_event_loop_lag_seconds", G),
                    bounds=(0.025, 0.25),
                ),
                Panel(
                    "CPU (good: under 80 % of a core)",
                    "A gateway is one process on one core. More of them: `docker compose --profile scale up`.",
                    "percentunit",
                    (Query(rate("process_cpu_seconds_total", PROCESS, "instance"), "{{instance}}"),),
                    bounds=(0.8, 0.95),
                ),
                Panel(
                    "Memory (good: level)",
                    "Resident, by gateway. It grows with open streams and kept answers; if it never falls, please "
                    "report it.",
                    "bytes",
                    (Query(f"max by (instance) (process_resident_memory_bytes{{{PROCESS}}})", "{{instance}}"),),
                ),
                Panel(
                    "Connections of clients (good: level)",
                    "Open ones, by gateway. At MAX_CONNECTIONS, or what open files allow, more are refused; engines "
                    "are reached all the same.",
                    "short",
                    (
                        Query("max by (instance) (gllm_connections)", "{{instance}}"),
                        Query(rate("gllm_connections_refused_total"), "refused a second"),
                    ),
                ),
                Panel(
                    "Usage in memory only (good: back to 0)",
                    "Rows that are not in the file yet, and writes that failed: look at the disk.",
                    "short",
                    (
                        Query("sum(gllm_ledger_unwritten)", "rows not written"),
                        Query(rate("gllm_ledger_failures_total"), "failures a second"),
                    ),
                ),
            ),
        ),
    ),
    (INSTANCE,),
)
