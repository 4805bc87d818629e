"""gllm as its users start it, `gllm serve`, with all policies, none, or one of them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.cost.engine import Engine, free_ports
from bench.cost.standing import Start
from bench.machine import ROOT
from bench.tenants import Tenant, file_of

ENDLESS = 1_000_000_000
"""A limit that is kept, and never met."""

REPLICAS = 4
ROOM = 16_384
"""Requests at once, of all replicas together: none waits, where waiting is not what is measured."""


@dataclass(frozen=True)
class Setup:
    """Which policies are on, and at what size. Without any it relays, and that is all."""

    key: bool = False
    requests_limit: bool = False
    tokens_limit: bool = False
    concurrent_limit: bool = False
    fair_queue: bool = False
    replicas: int = 1
    routing: str = "round_robin"
    metrics: bool = False
    log_line: bool = False
    tracing: bool = False
    tenants: int = 1
    slots: int = ROOM
    queue: int = ROOM

    def start(self, engine: Engine) -> Start:
        port, metrics_port = free_ports(2)
        tenants = self._tenants()
        return Start(
            command=[sys.executable, "-m", "gllm.cli", "serve", "--quiet"],
            port=port,
            environment={"PYTHONPATH": str(ROOT), **self._settings(engine, port, metrics_port)},
            files={"tenants.toml": file_of(tenants)} if tenants else {},
            keys=[tenant.key for tenant in tenants],
            metrics_port=metrics_port if self.metrics else None,
        )

    def _settings(self, engine: Engine, port: int, metrics_port: int) -> dict[str, str]:
        settings = {
            "PORT": str(port),
            "ENGINE_URLS": ",".join(engine.urls(self.replicas)),
            "MAX_CONCURRENT_REQUESTS": str(max(1, self.slots // self.replicas)),
            "QUEUE_CAPACITY": str(self.queue),
            "QUEUE_CAPACITY_TOKENS": str(ENDLESS),
            "ENABLE_BACKPRESSURE": _written(self.fair_queue),
            "ROUTING_POLICY": self.routing,
            "ENABLE_METRICS": _written(self.metrics),
            "ENABLE_TRACING": _written(self.tracing),
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "info" if self.log_line else "warning",
        }
        if self.metrics:
            settings["METRICS_PORT"] = str(metrics_port)
        if self.key:
            settings["TENANTS_FILE"] = "tenants.toml"
        if self.tracing:
            settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = engine.urls(1)[0]  # it takes whatever it is handed
            settings["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
            settings["OTEL_TRACES_SAMPLER_ARG"] = "0.01"
        return settings

    def _tenants(self) -> list[Tenant]:
        if not self.key:
            return []
        named = {
            "requests_per_minute": self.requests_limit,
            "tokens_per_minute": self.tokens_limit,
            "concurrent": self.concurrent_limit,
        }
        limits = {name: ENDLESS for name, kept in named.items() if kept}
        return [Tenant(f"t{number}", limits=limits) for number in range(self.tenants)]


def _written(on: bool) -> str:
    return str(on).lower()


NONE = Setup()
KEY = Setup(key=True)
SPREAD = Setup(replicas=REPLICAS)
ALL = Setup(
    key=True,
    requests_limit=True,
    tokens_limit=True,
    concurrent_limit=True,
    fair_queue=True,
    replicas=REPLICAS,
    routing="session",
    metrics=True,
    log_line=True,
    tracing=True,
)


@dataclass(frozen=True)
class Alone:
    """One policy, and what it is compared with: the same without it."""

    name: str
    setup: Setup
    without: str


BARE, WITH_KEY, WITH_REPLICAS, EVERYTHING = "none", "a key", "4 replicas, in turn", "all"

POLICIES: Sequence[Alone] = (
    Alone(BARE, NONE, ""),
    Alone(WITH_KEY, KEY, BARE),
    Alone("limit of requests", replace(KEY, requests_limit=True), WITH_KEY),
    Alone("limit of tokens", replace(KEY, tokens_limit=True), WITH_KEY),
    Alone("limit of concurrency", replace(KEY, concurrent_limit=True), WITH_KEY),
    Alone("fair queue", replace(NONE, fair_queue=True), BARE),
    Alone(WITH_REPLICAS, SPREAD, BARE),
    Alone("routing by load", replace(SPREAD, routing="session"), WITH_REPLICAS),
    Alone("metrics", replace(NONE, metrics=True), BARE),
    Alone("one log line", replace(NONE, log_line=True), BARE),
    Alone("tracing at 1 %", replace(NONE, tracing=True), BARE),
    Alone(EVERYTHING, ALL, BARE),
)
