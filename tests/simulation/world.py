"""What a simulation is made of: gateways, engines and a Redis, with their faults; clients and their ways.

All of it is fixed before it begins, and nothing depends on what the gateway does: worlds stay while gateways change.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

BEGAN_S = 1_000.0
"""When a world begins, on its clock."""


KNOW_EACH_OTHER_S = 6.0
"""So long before, gateways begin that share a Redis: until the first client comes each knows how many they are."""


class Trouble(StrEnum):
    """What an engine may have for a while."""

    DEAD = "dead"
    FROZEN = "frozen"
    STORM = "storm"
    """It refuses with backpressure."""
    SICK = "sick"
    """It refuses with 500s."""
    BREAKING = "breaking"
    """Answers break off."""
    STALLING = "stalling"
    SLOW = "slow"
    LYING = "lying"
    """About its usage, or by leaving it out."""
    UNENDING = "unending"
    """Answers go on for ever, or end without their end."""


@dataclass(frozen=True)
class Fault:
    engine: str
    trouble: Trouble
    at: float
    until: float
    share: float
    """Of the calls that meet it."""


class StoreTrouble(StrEnum):
    """What may be wrong between gateways and the Redis that they share."""

    GONE = "gone"
    """Connections break, new ones are refused."""
    LOST = "lost"
    """What is sent never arrives."""
    UNANSWERED = "unanswered"
    """It is done, and nothing comes back."""
    CUT = "cut"
    """It is done, or a part of it, or nothing; and the connection breaks where the answer should come."""
    LATE = "late"
    """It is done when nobody waits for it any more, and what was sent after it may be done before it."""
    SLOW = "slow"
    """Answers take a while, some longer than anybody waits."""
    REFUSING = "refusing"
    """It is full, or only reads, or loads its data."""
    FORGETFUL = "forgetful"
    """Its scripts are gone, again and again; its data are not."""


@dataclass(frozen=True)
class StoreFault:
    trouble: StoreTrouble
    at: float
    until: float
    share: float
    """Of the exchanges that meet it."""
    gateway: int | None = None
    """The one that has it; `None`: all."""
    empties: bool = False
    """What comes back has forgotten everything: a Redis without a disk was started again."""

    def meets(self, gateway: int) -> bool:
        return self.gateway is None or self.gateway == gateway


@dataclass(frozen=True)
class EnginePlan:
    name: str
    models: tuple[str, ...]
    slots: int
    places: int
    first_after_s: float
    pace_s: float
    events_per_block: int


@dataclass(frozen=True)
class TenantPlan:
    name: str
    weight: float
    priority: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent: int | None

    @property
    def key(self) -> str:
        return f"gllm-key-of-{self.name}"

    def toml(self) -> str:
        """As it stands in the file of tenants."""
        limits = {"requests_per_minute": self.requests_per_minute, "tokens_per_minute": self.tokens_per_minute}
        limits["concurrent"] = self.concurrent
        lines = [f'[[tenant]]\nname = "{self.name}"\nweight = {self.weight}\npriority = "{self.priority}"']
        lines += [f"{name} = {limit}" for name, limit in limits.items() if limit is not None]
        digest = hashlib.sha256(self.key.encode()).hexdigest()
        return "\n".join([*lines, f'[[tenant.key]]\nsha256 = "{digest}"\n'])


class Manner(StrEnum):
    """How a client takes its leave."""

    STAYS = "stays"
    HANGS_UP_AT_TIME = "hangs up at a time"
    HANGS_UP_AT_BLOCK = "hangs up at a block"
    STOPS_READING = "stops reading at a block"
    IS_KILLED = "its task is cancelled by the server"


@dataclass(frozen=True)
class Visit:
    """One request of one client."""

    id: str
    at: float
    model: str
    stream: bool
    tokens: int
    """How many the engine will make for it."""
    prompt_chars: int = 10
    shows_usage: bool = False
    timeout_ms: int | None = None
    body_parts: int = 1
    part_after_s: float = 0.0
    read_pace_s: float = 0.0
    """For each block that it takes."""
    manner: Manner = Manner.STAYS
    leaves_after_s: float = 0.0
    leaves_at_block: int = 0
    plain: bool = False
    """Its server is any ASGI server, not ours."""
    tenant: str | None = None
    key: str | None = None
    priority: str | None = None
    """What it asks for, which may be more than its tenant may have."""
    spare_tokens: int = 0
    """It allows for so many more tokens than are made."""
    idempotency_key: str | None = None
    seen_events: int | None = None
    """It comes back for the rest of a stream of which it has so many events."""
    session: str | None = None
    gateway: int = 0
    """Where it comes."""

    def body(self) -> bytes:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "x" * self.prompt_chars}],
            "max_tokens": self.tokens + self.spare_tokens,
            "stream": self.stream,
        }
        if self.stream and self.shows_usage:
            asked["stream_options"] = {"include_usage": True}
        return json.dumps(asked).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        told = [(b"content-type", b"application/json"), (b"x-request-id", self.id.encode())]
        if self.timeout_ms is not None:
            told.append((b"x-request-timeout-ms", b"%d" % self.timeout_ms))
        if self.key is not None:
            told.append((b"authorization", b"Bearer " + self.key.encode()))
        if self.idempotency_key is not None:
            told.append((b"idempotency-key", self.idempotency_key.encode()))
        if self.seen_events is not None:
            told.append((b"last-event-id", b"%d" % self.seen_events))
        if self.priority is not None:
            told.append((b"x-priority", self.priority.encode()))
        if self.session is not None:
            told.append((b"x-session-id", self.session.encode()))
        return told


@dataclass(frozen=True)
class World:
    seed: int
    settings: dict[str, Any]
    engines: tuple[EnginePlan, ...]
    visits: tuple[Visit, ...]
    tenants: tuple[TenantPlan, ...] = ()
    """Without any, the gateway is open."""
    faults: tuple[Fault, ...] = ()
    drains_at: float | None = None
    """The first gateway; others go on."""
    gateways: int = 1
    store_faults: tuple[StoreFault, ...] = ()
    """Of the Redis that they share, where `settings` say that they do."""
    wall_jumps: tuple[tuple[float, float], ...] = ()
    """When the clock on the wall jumps, and by how much. Nothing that lasts may go by that clock."""

    @property
    def calm(self) -> bool:
        """Nothing is wrong with its engines."""
        return not self.faults

    @property
    def shared(self) -> bool:
        """There is a Redis."""
        return "REDIS_TIMEOUT" in self.settings

    @property
    def faults_end(self) -> float:
        ends = [fault.until for fault in self.faults] + [fault.until for fault in self.store_faults]
        return max(ends, default=0.0)

    @cached_property
    def models(self) -> list[str]:
        return sorted({model for engine in self.engines for model in engine.models})

    def expires(self, visit: Visit, sent: float) -> float:
        limit: float = self.settings["REQUEST_TIMEOUT"]
        return sent + (limit if visit.timeout_ms is None else min(limit, visit.timeout_ms / 1e3))
