"""What a simulation is made of, drawn from its seed before it begins: engines and their faults, clients and their ways.

Nothing here depends on what the gateway does, so a world stays the same while the gateway changes. Each world has some
of the features only, and more of those: what comes together by chance would else be everything, and always the same.
"""

import json
import random
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

BEGAN_S = 1_000.0
"""When a world begins, on its clock."""


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


@dataclass(frozen=True)
class EnginePlan:
    name: str
    models: tuple[str, ...]
    slots: int
    places: int
    first_after_s: float
    pace_s: float
    events_per_block: int


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

    def body(self) -> bytes:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "x" * self.prompt_chars}],
            "max_tokens": self.tokens,
            "stream": self.stream,
        }
        if self.stream and self.shows_usage:
            asked["stream_options"] = {"include_usage": True}
        return json.dumps(asked).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        told = [(b"content-type", b"application/json"), (b"x-request-id", self.id.encode())]
        if self.timeout_ms is not None:
            told.append((b"x-request-timeout-ms", b"%d" % self.timeout_ms))
        return told


@dataclass(frozen=True)
class World:
    seed: int
    settings: dict[str, Any]
    engines: tuple[EnginePlan, ...]
    visits: tuple[Visit, ...]
    faults: tuple[Fault, ...] = ()
    drains_at: float | None = None

    @property
    def calm(self) -> bool:
        """Nothing is wrong with its engines."""
        return not self.faults

    @property
    def models(self) -> list[str]:
        return sorted({model for engine in self.engines for model in engine.models})

    def expires(self, visit: Visit, sent: float) -> float:
        limit: float = self.settings["REQUEST_TIMEOUT"]
        return sent + (limit if visit.timeout_ms is None else min(limit, visit.timeout_ms / 1e3))


def world_of(seed: int) -> World:
    return _Draw(seed).world()


@dataclass
class _Draw:
    seed: int
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"world {self.seed}")

    def world(self) -> World:
        span_s = self.rng.choice([1.0, 4.0, 10.0])
        models = tuple(f"model-{index}" for index in range(self.rng.choice([1, 1, 1, 2])))
        engines = tuple(self._engine(index, models) for index in range(self.rng.choice([1, 2, 2, 3, 4])))
        engines = (replace(engines[0], models=models), *engines[1:])  # each model has one engine at least
        faults = self._faults(span_s, engines)
        return World(
            seed=self.seed,
            settings=self._settings(calm=not faults),
            engines=engines,
            visits=self._visits(span_s, models),
            faults=faults,
            drains_at=BEGAN_S + span_s * self.rng.random() if self._sometimes(0.05) else None,
        )

    def _sometimes(self, share: float) -> bool:
        return self.rng.random() < share

    def _settings(self, calm: bool) -> dict[str, Any]:
        pick = self.rng.choice
        return {
            "LOG_LEVEL": "error",
            "ENABLE_METRICS": False,
            "REQUEST_TIMEOUT": pick([3.0, 8.0, 15.0]),
            "BODY_TIMEOUT": pick([0.5, 2.0]),
            "WRITE_TIMEOUT": pick([0.5, 2.0]),
            "FIRST_BYTE_TIMEOUT": 60.0 if calm else pick([0.5, 2.0]),
            "IDLE_TIMEOUT": 60.0 if calm else pick([0.3, 1.0]),
            "ROUTING_POLICY": pick(["least_load", "round_robin"]),
            "MAX_ATTEMPTS": pick([1, 2, 3, 5]),
            "PROBE_INTERVAL": pick([0.3, 1.0]),
            "MAX_CONCURRENT_REQUESTS": pick([1, 2, 4, 16]),
            "QUEUE_CAPACITY": pick([0, 1, 8, 100]),
            "CIRCUIT_FAILURES": pick([1, 3, 5]),
            "CIRCUIT_PAUSE": pick([0.2, 1.0]),
            "RETRY_BUDGET": pick([0.0, 0.2, 1.0]),
        }

    def _engine(self, index: int, models: tuple[str, ...]) -> EnginePlan:
        pick = self.rng.choice
        return EnginePlan(
            name=f"engine-{index}",
            models=models if self._sometimes(0.7) else (pick(models),),
            slots=pick([1, 2, 4, 16]),
            places=pick([0, 4, 100, 100]),
            first_after_s=pick([0.0, 0.01, 0.1]),
            pace_s=pick([0.0, 0.005, 0.02]),
            events_per_block=pick([1, 1, 1, 3]),
        )

    # --- clients --------------------------------------------------------------------------------------------------

    def _visits(self, span_s: float, models: tuple[str, ...]) -> tuple[Visit, ...]:
        ways = self._ways()
        count = self.rng.choice([5, 20, 20, 40, 80])
        visits = [self._visit(f"v{index}", at, models, ways) for index, at in enumerate(self._arrivals(count, span_s))]
        return tuple(visits)

    def _arrivals(self, count: int, span_s: float) -> list[float]:
        """Evenly spread, or in bursts in which all come in the same moment."""
        bursts = [self.rng.random() * span_s for _ in range(self.rng.choice([0, 0, 1, 3]))]
        return sorted(
            BEGAN_S + (self.rng.choice(bursts) if bursts and self._sometimes(0.7) else self.rng.random() * span_s)
            for _ in range(count)
        )

    def _ways(self) -> dict[str, float]:
        """How common each way of being difficult is in this world."""
        names = ["hang up at time", "hang up at block", "stop reading", "killed", "slow body", "slow reader", "deadline"]
        return {name: self.rng.choice([0, 0, 0.1, 0.4]) for name in names}

    def _visit(self, name: str, at: float, models: tuple[str, ...], ways: dict[str, float]) -> Visit:
        pick = self.rng.choice
        visit = Visit(
            id=f"{self.seed}-{name}",
            at=at,
            model=pick(models),
            stream=self._sometimes(0.7),
            tokens=pick([1, 3, 10, 30]),
            prompt_chars=pick([1, 100, 3_000]),
            shows_usage=self._sometimes(0.3),
            plain=self._sometimes(0.3),
        )
        if self._sometimes(ways["slow body"]):
            visit = replace(visit, body_parts=pick([2, 5]), part_after_s=pick([0.01, 0.2, 0.6]))
        if self._sometimes(ways["slow reader"]):
            visit = replace(visit, read_pace_s=pick([0.001, 0.05, 0.3]))
        if self._sometimes(ways["deadline"]):
            visit = replace(visit, timeout_ms=pick([1, 50, 300, 1_000, 60_000]))
        return replace(visit, **self._leaving(ways))

    def _leaving(self, ways: dict[str, float]) -> dict[str, Any]:
        rng = self.rng
        if self._sometimes(ways["hang up at time"]):
            return {"manner": Manner.HANGS_UP_AT_TIME, "leaves_after_s": rng.choice([0.0, 0.01, 0.1, 1.0]) * rng.random()}
        if self._sometimes(ways["hang up at block"]):
            return {"manner": Manner.HANGS_UP_AT_BLOCK, "leaves_at_block": rng.choice([0, 1, 2, 5, 10])}
        if self._sometimes(ways["stop reading"]):
            return {"manner": Manner.STOPS_READING, "leaves_at_block": rng.choice([0, 1, 2, 5])}
        if self._sometimes(ways["killed"] / 2):
            return {"manner": Manner.IS_KILLED, "leaves_after_s": rng.choice([0.01, 0.1, 1.0]) * rng.random()}
        return {}

    # --- faults ---------------------------------------------------------------------------------------------------

    def _faults(self, span_s: float, engines: tuple[EnginePlan, ...]) -> tuple[Fault, ...]:
        if self._sometimes(0.25):
            return ()
        troubles = self.rng.sample(list(Trouble), self.rng.choice([1, 2, 4]))
        count = self.rng.choice([1, 2, 5])
        return tuple(sorted((self._fault(span_s, engines, troubles) for _ in range(count)), key=lambda fault: fault.at))

    def _fault(self, span_s: float, engines: tuple[EnginePlan, ...], troubles: list[Trouble]) -> Fault:
        at = BEGAN_S + self.rng.random() * span_s
        return Fault(
            engine=self.rng.choice(engines).name,
            trouble=self.rng.choice(troubles),
            at=at,
            until=at + self.rng.choice([0.05, 0.5, 3.0]),
            share=self.rng.choice([0.3, 1.0]),
        )
