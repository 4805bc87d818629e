"""Replicas, workers, their GPUs, and changes of models."""

from deploy.grafana.panel import RATE, Board, Panel, Query, Row
from deploy.grafana.queries import READY, WORKERS

CLUSTER = Board(
    "cluster",
    "Cluster",
    "Replicas, workers, their GPUs, and changes of models.",
    (
        Row(
            "Replicas, as the gateways see them",
            (
                Panel(
                    "Replicas (good: all ready)",
                    "Not ready: it does not answer its probes, or another model is loaded. A gap: its worker has no "
                    "engine just now. `gllm logs WORKER` says why.",
                    "short",
                    (Query("min by (replica) (gllm_replica_ready)", "{{replica}}"),),
                    "state-timeline",
                    states=READY,
                ),
                Panel(
                    "Calls at each (good: even)",
                    "Of all gateways together, with what they allow. Uneven: sessions or prefixes draw calls to one.",
                    "short",
                    (
                        Query("sum by (replica) (gllm_replica_running)", "{{replica}}"),
                        Query("sum(gllm_replica_slots)", "slots of all", limit=True),
                    ),
                    stacked=True,
                ),
                Panel(
                    "As the engines tell (good: nothing waits)",
                    "Their own account, whoever sent it. More than the gateways' own: somebody goes past them.",
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
                    "loading and draining pass; failed and lost do not. `gllm status` names them.",
                    "short",
                    (Query("max by (state) (gllm_workers)", "{{state}}"),),
                    width=6,
                    stacked=True,
                    colours=WORKERS,
                ),
                Panel(
                    "GPUs by their workers' state (good: ready)",
                    "A lease ends when the memory is seen to be free. `gllm gpus` names those that are held.",
                    "short",
                    (Query("max by (state) (gllm_gpus_leased)", "{{state}}"),),
                    width=6,
                    stacked=True,
                    colours=WORKERS,
                ),
                Panel(
                    "Changes of models (good: done)",
                    "failed: everything serves again what it did, and GET /admin/swap says why.",
                    "short",
                    (
                        Query(f"sum by (outcome) (increase(gllm_swaps_total[{RATE}]))", "{{outcome}}"),
                        Query("max(gllm_swap_running)", "running"),
                    ),
                    width=6,
                    colours={"done": "green", "failed": "red", "cancelled": "purple", "running": "yellow"},
                ),
                Panel(
                    "How long changes take (good: level)",
                    "Half of them, and the longest, in the last hour. What is not in the page cache loads long.",
                    "s",
                    tuple(
                        Query(
                            f"histogram_quantile({share}, sum by (le) (rate(gllm_swap_duration_seconds_bucket[1h])))",
                            name,
                        )
                        for share, name in ((0.5, "half"), (1, "longest"))
                    ),
                    width=6,
                ),
            ),
        ),
    ),
)
