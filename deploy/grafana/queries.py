"""What the panels of all dashboards ask in the same way, and what means the same on all of them."""

from app.cluster.control import WorkerState
from deploy.grafana.panel import RATE, Query, State, Variable
from deploy.slo import BAD, GOOD

MODEL = Variable("model", "label_values(gllm_request_outcomes_total, model)")
TENANT = Variable("tenant", "label_values(gllm_tenant_requests_total, tenant)")
INSTANCE = Variable("instance", 'label_values(up{job="gateway"}, instance)')
ENGINE = Variable("engine", "label_values(vllm:num_requests_running, instance)")

OURS = 'model=~"$model"'

OUTCOMES = {
    GOOD: "green",
    **dict(zip(BAD, ("red", "dark-red", "orange", "yellow", "super-light-orange"), strict=True)),
    "client_error": "blue",
    "rate_limited": "light-blue",
    "client_gone": "purple",
}
"""Warm colours are our doing, cold ones the callers'."""

WORKERS = {
    WorkerState.READY: "green",
    WorkerState.LOADING: "yellow",
    WorkerState.DRAINING: "blue",
    WorkerState.EMPTY: "text",
    WorkerState.STOPPED: "purple",
    WorkerState.FAILED: "red",
    "lost": "dark-red",
}

READY = (State("1", "ready", "green"), State("0", "not ready", "red"))
ANSWERS = (State("1", "answers", "green"), State("0", "does not", "red"))
PAUSED = (State("0", "takes calls", "green"), State("1", "is given a pause", "orange"))


def rate(name: str, labels: str = "", by: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}(rate({name}{f'{{{labels}}}' if labels else ''}[{RATE}]))"


def quantile(share: float, name: str, labels: str = "", by: str = "") -> str:
    """Of a histogram; over `by` apart."""
    return f"histogram_quantile({share:g}, {rate(f'{name}_bucket', labels, ', '.join(filter(None, (by, 'le'))))})"


def quantiles(name: str, labels: str = "", *, exemplars: bool = False) -> tuple[Query, ...]:
    return tuple(Query(quantile(each, name, labels), f"p{each * 100:g}", exemplars) for each in (0.5, 0.9, 0.99))


def part(some: str, everything: str) -> str:
    """0 where there is nothing to divide, and nothing where nothing is known."""
    return f"{some} / ({everything} > 0) or {everything} * 0"
