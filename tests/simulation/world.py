"""What a simulation is made of, drawn from its seed before it begins: engines and their faults, clients and their ways.

Nothing here depends on what the gateway does, so a world stays the same while the gateway changes. Each world has some
of the features only, and more of those: what comes together by chance would else be everything, and always the same.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

T = TypeVar("T")

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


Way = Callable[[random.Random], dict[str, Any]]

WAYS: dict[str, Way] = {
    "slow body": lambda rng: {"body_parts": rng.choice([2, 5]), "part_after_s": rng.choice([0.01, 0.2, 0.6])},
    "slow reader": lambda rng: {"read_pace_s": rng.choice([0.001, 0.05, 0.3])},
    "deadline": lambda rng: {"timeout_ms": rng.choice([1, 50, 300, 1_000, 60_000])},
    "killed": lambda rng: {
        "manner": Manner.IS_KILLED,
        "leaves_after_s": rng.choice([0.01, 0.1, 1.0]) * rng.random(),
    },
    "stops reading": lambda rng: {"manner": Manner.STOPS_READING, "leaves_at_block": rng.choice([0, 1, 2, 5])},
    "hangs up at a block": lambda rng: {
        "manner": Manner.HANGS_UP_AT_BLOCK,
        "leaves_at_block": rng.choice([0, 1, 2, 5, 10]),
    },
    "hangs up at a time": lambda rng: {
        "manner": Manner.HANGS_UP_AT_TIME,
        "leaves_after_s": rng.choice([0.0, 0.01, 0.1, 1.0]) * rng.random(),
    },
}
"""In which a client may be difficult. Each world says how common each of them is there."""

UNSEEN = {"LOG_LEVEL": "error", "ENABLE_METRICS": False}

SETTINGS: dict[str, list[Any]] = {
    "REQUEST_TIMEOUT": [3.0, 8.0, 15.0],
    "BODY_TIMEOUT": [0.5, 2.0],
    "WRITE_TIMEOUT": [0.5, 2.0],
    "FIRST_BYTE_TIMEOUT": [0.5, 2.0],
    "IDLE_TIMEOUT": [0.3, 1.0],
    "ROUTING_POLICY": ["least_load", "round_robin"],
    "MAX_ATTEMPTS": [1, 2, 3, 5],
    "PROBE_INTERVAL": [0.3, 1.0],
    "MAX_CONCURRENT_REQUESTS": [1, 2, 4, 16],
    "QUEUE_CAPACITY": [0, 1, 8, 100],
    "CIRCUIT_FAILURES": [1, 3, 5],
    "CIRCUIT_PAUSE": [0.2, 1.0],
    "RETRY_BUDGET": [0.0, 0.2, 1.0],
    "QUEUE_CAPACITY_TOKENS": [50, 1_000, 1_000_000],
    "HEDGE_SHARE": [0.0, 0.0, 0.2],
    "ADAPTIVE_CONCURRENCY": [False, False, True],
    "ENABLE_BACKPRESSURE": [True, True, True, False],
    "EXACT_USAGE": [True, False],
    "DRAIN_SECONDS": [0.05, 0.5, 5.0],
}


@dataclass(frozen=True)
class World:
    seed: int
    settings: dict[str, Any]
    engines: tuple[EnginePlan, ...]
    visits: tuple[Visit, ...]
    faults: tuple[Fault, ...] = ()
    drains_at: float | None = None
    wall_jumps: tuple[tuple[float, float], ...] = ()
    """When the clock on the wall jumps, and by how much. Nothing that lasts may go by that clock."""

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


class _Draw:
    """Each thing is drawn from a source of its own, so that a new one leaves those before it as they were: a seed that
    found something goes on finding it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def _from(self, *what: object) -> random.Random:
        return random.Random(f"{self.seed} {' '.join(map(str, what))}")

    def _pick(self, what: str, choices: Sequence[T]) -> T:
        return self._from(what).choice(choices)

    def world(self) -> World:
        span_s = self._pick("span", [1.0, 4.0, 10.0])
        models = tuple(f"model-{index}" for index in range(self._pick("models", [1, 1, 1, 2])))
        engines = [self._engine(index, models) for index in range(self._pick("engines", [1, 2, 2, 3, 4]))]
        engines[0] = replace(engines[0], models=models)  # each model has one engine at least
        faults = self._faults(span_s, [engine.name for engine in engines])
        drain = self._from("drain")
        return World(
            seed=self.seed,
            settings=self._settings(calm=not faults),
            engines=tuple(engines),
            visits=tuple(self._visits(span_s, models)),
            faults=tuple(faults),
            wall_jumps=tuple(self._jumps(span_s)),
            drains_at=BEGAN_S + span_s * drain.random() if drain.random() < 0.05 else None,
        )

    def _settings(self, *, calm: bool) -> dict[str, Any]:
        patient = {"FIRST_BYTE_TIMEOUT": 60.0, "IDLE_TIMEOUT": 60.0} if calm else {}
        return UNSEEN | {name: self._pick(name, choices) for name, choices in SETTINGS.items()} | patient

    def _engine(self, index: int, models: tuple[str, ...]) -> EnginePlan:
        rng = self._from("engine", index)
        return EnginePlan(
            name=f"engine-{index}",
            models=models if rng.random() < 0.7 else (rng.choice(models),),
            slots=rng.choice([1, 2, 4, 16]),
            places=rng.choice([0, 4, 100, 100]),
            first_after_s=rng.choice([0.0, 0.01, 0.1]),
            pace_s=rng.choice([0.0, 0.005, 0.02]),
            events_per_block=rng.choice([1, 1, 1, 3]),
        )

    def _jumps(self, span_s: float) -> Iterator[tuple[float, float]]:
        rng = self._from("wall clock")
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            yield BEGAN_S + rng.random() * span_s, rng.choice([-1, 1]) * rng.choice([1.0, 86_400.0, 10 * 86_400.0])

    # --- clients --------------------------------------------------------------------------------------------------

    def _visits(self, span_s: float, models: tuple[str, ...]) -> Iterator[Visit]:
        common = {way: self._pick(f"how common is {way}", [0, 0, 0.1, 0.4]) for way in WAYS}
        for index, at in enumerate(self._arrivals(self._pick("visits", [5, 20, 20, 40, 80]), span_s)):
            visit = self._visit(index, at, models)
            for way, bent in WAYS.items():
                rng = self._from(way, index)
                if rng.random() < common[way]:
                    visit = replace(visit, **bent(rng))
            yield visit

    def _arrivals(self, count: int, span_s: float) -> list[float]:
        """Evenly spread, or in bursts in which all come in the same moment."""
        rng = self._from("arrivals")
        bursts = [rng.random() * span_s for _ in range(rng.choice([0, 0, 1, 3]))]
        moments = [rng.choice(bursts) if bursts and rng.random() < 0.7 else rng.random() * span_s for _ in range(count)]
        return [BEGAN_S + moment for moment in sorted(moments)]

    def _visit(self, index: int, at: float, models: tuple[str, ...]) -> Visit:
        rng = self._from("visit", index)
        return Visit(
            id=f"{self.seed}-v{index}",
            at=at,
            model=rng.choice(models),
            stream=rng.random() < 0.7,
            tokens=rng.choice([1, 3, 10, 30]),
            prompt_chars=rng.choice([1, 100, 3_000]),
            shows_usage=rng.random() < 0.3,
            plain=rng.random() < 0.3,
        )

    # --- faults ---------------------------------------------------------------------------------------------------

    def _faults(self, span_s: float, engines: list[str]) -> list[Fault]:
        rng = self._from("faults")
        troubles = rng.sample(list(Trouble), rng.choice([1, 2, 4]))
        count = rng.choice([0, 1, 2, 5])
        return sorted((self._fault(rng, span_s, engines, troubles) for _ in range(count)), key=lambda fault: fault.at)

    def _fault(self, rng: random.Random, span_s: float, engines: list[str], troubles: list[Trouble]) -> Fault:
        at = BEGAN_S + rng.random() * span_s
        until = at + rng.choice([0.05, 0.5, 3.0])
        return Fault(rng.choice(engines), rng.choice(troubles), at, until, share=rng.choice([0.3, 1.0]))
