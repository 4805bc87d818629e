"""A world drawn from its seed.

Each world has some of the features only, and more of those: all of them together, always, would be always the same.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from app.gateway.routing import POLICIES
from tests.simulation.world import (
    BEGAN_S,
    KNOW_EACH_OTHER_S,
    EnginePlan,
    Fault,
    Manner,
    StoreFault,
    StoreTrouble,
    TenantPlan,
    Trouble,
    Visit,
    World,
)

T = TypeVar("T")

Way = Callable[[random.Random], dict[str, Any]]

WAYS: dict[str, Way] = {
    "asks for much": lambda rng: {"spare_tokens": rng.choice([10, 100, 1_000])},
    "has its own idea of its priority": lambda rng: {"priority": rng.choice(["interactive", "normal", "batch"])},
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

CONTENDED: dict[str, Any] = {
    "REQUEST_TIMEOUT": 60.0,
    "FIRST_BYTE_TIMEOUT": 60.0,
    "IDLE_TIMEOUT": 60.0,
    "QUEUE_CAPACITY": 1_000,
    "QUEUE_CAPACITY_TOKENS": 1_000_000,
    "HEDGE_SHARE": 0.0,
    "ADAPTIVE_CONCURRENCY": False,
    "ENABLE_BACKPRESSURE": True,
}

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
    "TAKEOVER": [False, True, True],
    "QUEUE_CAPACITY_TOKENS": [50, 1_000, 1_000_000],
    "HEDGE_SHARE": [0.0, 0.0, 0.2],
    "ADAPTIVE_CONCURRENCY": [False, False, True],
    "ENABLE_BACKPRESSURE": [True, True, True, False],
    "EXACT_USAGE": [True, False],
    "DRAIN_SECONDS": [0.05, 0.5, 5.0],
    "INTERACTIVE_SHARE": [0.0, 0.0, 0.5],
    "BATCH_PROMOTED_AFTER": [0.5, 60.0],
    "IDEMPOTENCY_GRACE": [0.0, 0.3, 2.0],
    "IDEMPOTENCY_ATTACH": [True, True, False],
    "IDEMPOTENCY_MAX_BYTES": [1_024, 2**20, 2**20],
    "IDEMPOTENCY_MAX_EVENTS": [5, 20_000, 20_000],
}


WITH_REDIS: dict[str, list[Any]] = {
    "REDIS_TIMEOUT": [0.05, 0.05, 0.2],
    "IDEMPOTENCY_LEASE": [3.0, 10.0],
    "LEDGER_FLUSH_INTERVAL": [0.3, 0.5],
}

OLDEST = 100
"""Seeds before it found what is kept, in worlds without Redis and with two routing policies. They stay as they were."""


def world_of(seed: int) -> World:
    draw = _Draw(seed)
    world = draw.world()
    if seed % 10 == 9:
        world = draw.contended(world)
    if seed < OLDEST:
        return world
    if seed % 10 == 7:
        world = draw.dying(world)
    return draw.routed(draw.shared(world) if seed % 2 == 0 else world)


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
        tenants = tuple(self._tenant(index) for index in range(self._pick("tenants", [0, 0, 1, 2, 3])))
        keys = self._pick("how common are keys", [0, 0, 0.1, 0.5])
        drain = self._from("drain")
        return World(
            seed=self.seed,
            settings=self._settings(calm=not faults),
            engines=tuple(engines),
            visits=tuple(self._with_twins(self._of_tenants(tenants, self._visits(span_s, models)), keys)),
            tenants=tenants,
            faults=tuple(faults),
            wall_jumps=tuple(self._jumps(span_s)),
            drains_at=BEGAN_S + span_s * drain.random() if drain.random() < 0.05 else None,
        )

    def contended(self, world: World) -> World:
        """The same, with a long line that its tenants share, and nothing else between them."""
        tenants = tuple(
            TenantPlan(f"tenant-{index}", weight, "normal", None, None, None)
            for index, weight in enumerate([1.0, *self._pick("weights of others", [(1.0,), (3.0,), (1.0, 1.0)])])
        )
        engine = EnginePlan(
            "engine-0", tuple(world.models), 16, 100, 0.01, self._pick("contended pace", [0.0, 0.01]), 1
        )
        crowd = self._arrivals(self._pick("crowd", [40, 80, 150]), 0.5)
        visits = [replace(self._visit(index, at, tuple(world.models)), tokens=10) for index, at in enumerate(crowd)]
        return replace(
            world,
            settings=world.settings | CONTENDED | {"MAX_CONCURRENT_REQUESTS": self._pick("contended slots", [1, 2])},
            engines=(engine,),
            tenants=tenants,
            visits=tuple(self._of_tenants(tenants, visits)),
            faults=(),
            drains_at=None,
        )

    def dying(self, world: World) -> World:
        """The same, with engines that die in the middle of their answers, and others that may go on with these."""
        span_s = self._pick("span", [1.0, 4.0, 10.0])
        models, count = tuple(world.models), max(len(world.engines), self._pick("engines that die", [2, 3, 4]))
        engines = [replace(self._engine(index, models), models=models) for index in range(count)]
        rng = self._from("deaths")
        names, troubles = [engine.name for engine in engines], [Trouble.DEAD, Trouble.BREAKING, Trouble.STALLING]
        faults = [self._fault(rng, span_s, names, troubles) for _ in range(rng.choice([2, 5, 10]))]
        allows = {"MAX_ATTEMPTS": self._pick("attempts at the dying", [2, 3, 5])}
        return replace(
            world,
            settings=world.settings | allows | {"TAKEOVER": True, "EXACT_USAGE": True},
            engines=tuple(replace(engine, pace_s=engine.pace_s or 0.01) for engine in engines),
            faults=tuple(sorted([*world.faults, *faults], key=lambda fault: fault.at)),
        )

    def routed(self, world: World) -> World:
        """The same, with any of the routing policies, and clients that name their sessions."""
        common = self._pick("how common are sessions", [0, 0.5])
        visits = [replace(visit, session=self._session(visit, common)) for visit in world.visits]
        policy = {"ROUTING_POLICY": self._pick("routing policy", sorted(POLICIES))}
        return replace(world, settings=world.settings | policy, visits=tuple(visits))

    def _session(self, visit: Visit, common: float) -> str | None:
        rng = self._from("session of", visit.id)
        return f"session-{rng.randrange(4)}" if rng.random() < common else None

    def shared(self, world: World) -> World:
        """The same, with a Redis that one to three gateways share and now and then cannot reach; and with more of that
        for which they need it."""
        span_s = self._pick("span", [1.0, 4.0, 10.0])
        gateways = self._pick("gateways", [1, 2, 2, 3])
        tenants = tuple(self._limited(index) for index in range(self._pick("limited tenants", [0, 1, 1, 2])))
        common = self._pick("how common are shared keys", [0, 0.1, 0.5, 0.5])
        visits = self._with_twins(self._of_tenants(tenants, self._visits(span_s, tuple(world.models))), common)
        return replace(
            world,
            settings=world.settings | {name: self._pick(name, choices) for name, choices in WITH_REDIS.items()},
            tenants=tenants,
            visits=tuple(self._at_gateways(visits, gateways)),
            gateways=gateways,
            store_faults=tuple(self._store_faults(span_s, gateways)),
        )

    def _at_gateways(self, visits: Iterable[Visit], gateways: int) -> Iterator[Visit]:
        for visit in visits:
            yield replace(visit, gateway=self._from("gateway of", visit.id).randrange(gateways))

    def _limited(self, index: int) -> TenantPlan:
        rng = self._from("limited tenant", index)
        return replace(
            self._tenant(index),
            requests_per_minute=rng.choice([None, None, 5, 30]),
            tokens_per_minute=rng.choice([None, None, 1_000, 5_000]),
            concurrent=rng.choice([None, 1, 4]),
        )

    def _store_faults(self, span_s: float, gateways: int) -> list[StoreFault]:
        rng = self._from("store faults")
        troubles = rng.sample(list(StoreTrouble), rng.choice([1, 2, 4]))
        count = rng.choice([0, 1, 1, 2, 4])
        faults = [self._store_fault(rng, span_s, gateways, troubles) for _ in range(count)]
        return sorted(faults, key=lambda fault: fault.at)

    def _store_fault(
        self, rng: random.Random, span_s: float, gateways: int, troubles: list[StoreTrouble]
    ) -> StoreFault:
        trouble = rng.choice([*troubles, StoreTrouble.GONE])
        while_they_come, then, before = rng.random() * span_s, span_s * (1 + rng.random()), -rng.random()
        at = BEGAN_S + rng.choice([*[while_they_come] * 4, then, before, -KNOW_EACH_OTHER_S])
        until = at + rng.choice([0.02, 0.3, 2.0, 6.0])
        gateway = rng.choice([None, None, rng.randrange(gateways)])
        empties = trouble is StoreTrouble.GONE and gateway is None and rng.random() < 0.5
        return StoreFault(trouble, at, until, 1.0 if empties else rng.choice([0.3, 1.0, 1.0]), gateway, empties)

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

    # --- tenants --------------------------------------------------------------------------------------------------

    def _tenant(self, index: int) -> TenantPlan:
        rng = self._from("tenant", index)
        return TenantPlan(
            name=f"tenant-{index}",
            weight=rng.choice([1.0, 1.0, 3.0]),
            priority=rng.choice(["normal", "normal", "normal", "interactive", "batch"]),
            requests_per_minute=rng.choice([*[None] * 8, 3, 30]),
            tokens_per_minute=rng.choice([*[None] * 8, 1_000, 5_000]),
            concurrent=rng.choice([*[None] * 6, 1, 4]),
        )

    def _of_tenants(self, tenants: Sequence[TenantPlan], visits: Iterable[Visit]) -> Iterator[Visit]:
        """The first of them may be greedy. Now and then a key is wrong."""
        greed = self._pick("greed", [1, 1, 20])
        wrong = self._pick("wrong keys", [0, 0, 0.1])
        for index, visit in enumerate(visits):
            if not tenants:
                yield visit
                continue
            rng = self._from("tenant of", index)
            (tenant,) = rng.choices(tenants, weights=[greed, *[1] * (len(tenants) - 1)])
            key = "gllm-nobody" if rng.random() < wrong else tenant.key
            yield replace(visit, tenant=tenant.name, key=key)

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

    def _with_twins(self, visits: Iterable[Visit], common: float) -> Iterator[Visit]:
        """Some have a key, and some of those come again: at once, soon, when it is over; or for the rest only."""
        for index, visit in enumerate(visits):
            rng = self._from("key", index)
            if rng.random() >= common:
                yield visit
                continue
            keyed = replace(visit, idempotency_key=f"key-{index}")
            yield keyed
            for number in range(rng.choice([0, 1, 1, 2, 5])):
                yield replace(self._twin(rng, keyed), id=f"{keyed.id}-twin-{number}")

    def _twin(self, rng: random.Random, visit: Visit) -> Visit:
        later = rng.choice([0.0, 0.0, 0.01, 0.3, 2.0, 10.0]) * rng.choice([1.0, rng.random()])
        twin = replace(visit, at=visit.at + later, manner=rng.choice([visit.manner, Manner.STAYS, Manner.STAYS]))
        if visit.stream and rng.random() < 0.3:
            twin = replace(twin, seen_events=rng.choice([0, 1, 3, 10]))
        if rng.random() < 0.1:
            twin = replace(twin, prompt_chars=visit.prompt_chars + 1)
        return twin

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
