"""Which processes a cluster is made of: decided before any of them is started."""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace

from app.cluster.launchers.plan import Machine, url_of
from app.cluster.launchers.ports import LAST_PORT, NoPort, Ports
from app.cluster.launchers.ray import words
from app.settings.values import base_urls
from gllm.cli.child import Program
from gllm.cli.greeting import near
from gllm.cli.listening import Listening, address_for_others

WORKER_HOST = "127.0.0.1"
"""Workers beside their gateway are for it alone."""

PORTS_APART, ENGINE_PORT_AFTER = 100, 10
"""GLLM's, which people have in their firewalls."""

DRAIN_S, GATEWAY_SLACK_S, WORKER_GRACE_S = 3.5, 1.0, 4.5
"""Running answers end, the gateway ends, and then the workers: all within the ten seconds that others wait for us."""

RAY_DRAIN_S = 0.5
"""Ray takes most of them."""


class BadPlan(Exception):
    """The text is a sentence for the person who wishes it."""


@dataclass(frozen=True)
class Plan:
    url: str
    keyed: bool
    gateway: Program
    workers: tuple[Program, ...]
    expected: tuple[str, ...]
    """The URLs of all workers: of those above, or of others."""
    model: str | None = None
    on_ray: words.Wanted | None = None
    """Workers that Ray places. They register by themselves, so only their number is known."""
    secret: str = field(default="", repr=False)
    notes: tuple[str, ...] = ()
    """What turned out otherwise than it was wished."""


@dataclass(frozen=True)
class Here:
    """Workers on the GPUs of this machine, as the flags wish them."""

    gpus: tuple[tuple[str, ...], ...]
    """Of each."""
    first_port: int
    engine: str
    args: tuple[str, ...]
    machine: Machine

    def plan(self, at: Listening, model: str | None) -> Plan:
        if not 1 <= self.first_port <= LAST_PORT:
            raise BadPlan(f"--worker-port-range-start must be from 1 to {LAST_PORT}, not {self.first_port}.")
        secret = _secret(at) or secrets.token_urlsafe(32)
        notes = [] if self.machine.has_gpu else ["This machine has no GPU: the workers share its CPU."]
        with ExitStack() as held:
            port = held.enter_context(at.port())
            places = [_place(number, self.first_port, held, notes) for number in range(len(self.gpus))]
        env = {
            "MODEL_NAME": "",  # models are loaded through the gateway, all alike
            "LOG_FORMAT": _log_format(at),
            **_told_to_children(secret),
        }
        workers = tuple(self._worker(number, place, env) for number, place in enumerate(places))
        return _plan(at, port, workers, tuple(place.url for place in places), model, secret, notes)

    def _worker(self, number: int, place: _Place, env: dict[str, str]) -> Program:
        name, gpus = f"worker-{number}", ",".join(self.gpus[number])
        line = (
            *("worker", "--name", name),
            *("--host", WORKER_HOST, "--port", str(place.port), "--engine-port", str(place.engine_port)),
            *("--engine", self.engine, "--gpus", gpus if self.machine.has_gpu else "none"),
            *(("--", *self.args) if self.args else ()),
        )
        threads = max(1, self.machine.cores // len(self.gpus))
        shared = {} if self.machine.has_gpu else {"OMP_NUM_THREADS": str(threads)}
        return Program(name, line, f"{place.url}/health", WORKER_GRACE_S, env, shared)


@dataclass(frozen=True)
class OnRay:
    """Workers on the nodes of a Ray cluster, as the flags wish them."""

    workers: int | None
    """`None`: as many as there is room for."""
    gpus: int
    """Of each; none: on the CPU."""
    address: str
    engine: str
    args: tuple[str, ...]

    def plan(self, at: Listening, model: str | None) -> Plan:
        secret = _secret(at) or secrets.token_urlsafe(32)
        with at.port() as port:
            plan = _plan(at, port, (), (), model, secret, [], RAY_DRAIN_S)
        env = {
            "ENGINE_TYPE": self.engine,
            "ENGINE_ARGS": shlex.join(self.args),
            "MODEL_NAME": "",
            "GATEWAY_URLS": url_of(address_for_others(at.host, self.address), port),
            **_traced(at),
            **_told_to_children(secret),
        }
        wanted = words.Wanted(address=self.address, workers=self.workers, gpus=self.gpus, env=env)
        return replace(plan, on_ray=wanted)


def with_others(urls: Sequence[str], at: Listening, model: str | None) -> Plan:
    """Workers that somebody else starts."""
    try:
        expected = base_urls(tuple(urls))
    except ValueError as error:
        raise BadPlan(f"--existing-workers {error}.") from None
    with at.port() as port:
        return _plan(at, port, (), expected, model, _secret(at), [])


def _plan(
    at: Listening,
    port: int,
    workers: tuple[Program, ...],
    expected: tuple[str, ...],
    model: str | None,
    secret: str,
    notes: Sequence[str],
    drain_s: float = DRAIN_S,
) -> Plan:
    url = near(at.host, port)
    kept_in = f"The gateway answers on this machine only: {url}. To open it, set TENANTS_FILE or ALLOW_ANONYMOUS=true."
    return Plan(
        url=url,
        keyed=at.keyed,
        gateway=_gateway(at, port, url, expected, secret, drain_s),
        workers=workers,
        expected=expected,
        model=model,
        secret=secret,
        notes=(*notes, kept_in) if at.kept_in else tuple(notes),
    )


def _gateway(at: Listening, port: int, url: str, expected: Sequence[str], secret: str, drain_s: float) -> Program:
    listen = at.settings.listen
    env = {
        "HOST": listen.host,
        "PORT": str(port),
        "ENGINE_TYPE": "workers",
        "ENGINE_COMMAND": "",  # of the workers; a gateway that starts nothing would wonder at it
        "WORKER_URLS": ",".join(dict.fromkeys((*at.settings.cluster.worker_urls, *expected))),
        "DRAIN_SECONDS": f"{min(listen.drain_s, drain_s):g}",
        "LOG_FORMAT": _log_format(at),
        **_told_to_children(secret),
    }
    return Program("gateway", ("serve", "--quiet"), f"{url}/livez", drain_s + GATEWAY_SLACK_S, env)


@dataclass(frozen=True)
class _Place:
    port: int
    engine_port: int

    @property
    def url(self) -> str:
        return f"http://{WORKER_HOST}:{self.port}"


def _place(number: int, first_port: int, held: ExitStack, notes: list[str]) -> _Place:
    """Its two ports, or the next that are free."""
    port = _free(first_port + number * PORTS_APART, f"worker-{number}", held, notes)
    return _Place(port, _free(port + ENGINE_PORT_AFTER, f"the engine of worker-{number}", held, notes))


def _free(wanted: int, whose: str, held: ExitStack, notes: list[str]) -> int:
    ports = held.enter_context(closing(Ports(WORKER_HOST, wanted)))
    try:
        found = next(ports)
    except NoPort:
        raise BadPlan(f"No port from {wanted} to {LAST_PORT} is free for {whose}.") from None
    if found != wanted:
        notes.append(f"Port {wanted} is taken: {whose} gets {found}.")
    return found


def _log_format(at: Listening) -> str:
    """A child sees a pipe, whoever reads at its end."""
    given = at.settings.logs.format
    return "text" if given == "auto" and sys.stdout.isatty() else given


def _traced(at: Listening) -> dict[str, str]:
    """For workers on other machines, whose environment is another one."""
    telemetry = at.settings.telemetry
    return {"ENABLE_TRACING": "true", **telemetry.otel} if telemetry.traced else {}


def _told_to_children(secret: str) -> dict[str, str]:
    return {"CLUSTER_SECRET": secret} if secret else {}


def _secret(at: Listening) -> str:
    given = at.settings.cluster.secret
    return given.get_secret_value() if given else ""
