"""vLLM and Transformers side by side: both speak the same names."""

from deploy.grafana.panel import Board, Panel, Query, Row
from deploy.grafana.queries import ENGINE, quantile, rate
from deploy.slo import TPOT_S

E = 'instance=~"$engine"'


def _of_each(metric: str, fold: str = "sum") -> tuple[Query, ...]:
    return (Query(f"{fold} by (instance) ({metric}{{{E}}})", "{{instance}}"),)


def _p99(metric: str) -> Query:
    return Query(quantile(0.99, metric, E, "instance"), "{{instance}}")


def _hits() -> Query:
    hits, asked = (rate(f"vllm:prefix_cache_{each}_total", E, "instance") for each in ("hits", "queries"))
    return Query(f"{hits} / ({asked} > 0) or {asked} * 0", "{{instance}}")


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
                    "Sequences in each engine's batch. One engine alone: sessions or prefixes draw calls there, or "
                    "the others are not ready (dashboard Cluster).",
                    "short",
                    _of_each("vllm:num_requests_running"),
                    width=6,
                ),
                Panel(
                    "Waiting inside engines (good: 0)",
                    "What waits there waits in no fair order. Lower MAX_CONCURRENT_REQUESTS, or set "
                    "ADAPTIVE_CONCURRENCY=true.",
                    "short",
                    _of_each("vllm:num_requests_waiting"),
                    width=6,
                    bounds=(1, 10),
                ),
                Panel(
                    "Tokens made (good: level at full load)",
                    "A second, by engine. Falling while as many run: prompts are longer, or the GPU is throttled.",
                    "short",
                    (Query(rate("vllm:generation_tokens_total", E, "instance"), "{{instance}}"),),
                    width=6,
                ),
                Panel(
                    "Prompt tokens (good: level at full load)",
                    "A second, by engine. Peaks of it slow down the streams that run beside them.",
                    "short",
                    (Query(rate("vllm:prompt_tokens_total", E, "instance"), "{{instance}}"),),
                    width=6,
                ),
            ),
        ),
        Row(
            "Memory",
            (
                Panel(
                    "KV cache in use (good: under 95 %)",
                    "Full, and with preemptions beside it, work is done twice: allow fewer calls, or shorter ones.",
                    "percentunit",
                    _of_each("vllm:kv_cache_usage_perc", "max"),
                    bounds=(0.85, 0.95),
                ),
                Panel(
                    "Preemptions (good: 0)",
                    "Sequences put back to make room for others. There is an alert when the cache is full, too.",
                    "cps",
                    (Query(rate("vllm:num_preemptions_total", E, "instance"), "{{instance}}"),),
                ),
                Panel(
                    "Prefix cache hits (good: more)",
                    "Share of prompt tokens that were there already. X-Session-Id or ROUTING_POLICY=prefix raise it.",
                    "percentunit",
                    (_hits(),),
                ),
            ),
        ),
        Row(
            "Time",
            (
                Panel(
                    "First token p99 (good: near the gateway's)",
                    "At the engines, and at the gateway. What the gateway has more is waiting in line, or another "
                    "attempt.",
                    "s",
                    (
                        _p99("vllm:time_to_first_token_seconds"),
                        Query(quantile(0.99, "gllm_time_to_first_token_seconds"), "gateway", limit=True),
                    ),
                ),
                Panel(
                    f"Between tokens p99 (good: under {TPOT_S:g} s)",
                    "Grows with the batch, and with long prompts beside it.",
                    "s",
                    (_p99("vllm:inter_token_latency_seconds"),),
                    bounds=(0.05, TPOT_S),
                ),
                Panel(
                    "Sequences by how they ended (good: no error)",
                    "abort: the caller hung up, or its time was over. error: the engine's log says more.",
                    "cps",
                    (Query(rate("vllm:request_success_total", E, "finished_reason"), "{{finished_reason}}"),),
                    stacked=True,
                    colours={"stop": "green", "length": "blue", "abort": "purple", "error": "red"},
                ),
            ),
        ),
    ),
    (ENGINE,),
)
