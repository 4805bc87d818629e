"""Policies of routing on simulated engines: how even they are, what they see too late, and what they find cached.

    python -m bench routing [--seed 7] [--seconds 200] [--quick] [--json FILE]

Fleet, leases and policies are the gateway's own; time and engines are simulated, so that a figure is of the policy
alone and comes out the same on every machine. An engine reads prompts one after another, except for what its cache
still has, and writes answers side by side, each a little slower the more there are. Only CPU is measured in real time.
"""

import heapq
import itertools
import random
import sys
import timeit
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from app.cluster.fleet import Fleet, Policy
from app.cluster.prefixes import Prefixes
from app.cluster.replica import Lease, Replica
from app.engines.scripted import Scripted
from app.gateway.routing import least_load, power_of_two, prefix, round_robin, session
from app.gateway.routing.chain import BLOCK, LONGEST, chain_of, prefix_of
from app.generation import Call, Route
from app.reliability.limit import Load
from app.telemetry.base import Everyone
from app.tenant import ANONYMOUS
from app.wire.parsing import parse
from app.wire.prompts import prompt_of
from bench import scenario
from bench.figures import Row, percentile
from bench.scenario import Options, Report

REPLICAS = 8
SLOTS = 32
STEP_TOKENS = 64
"""What one step of a chain is here."""
READS_PER_S = 8_000
"""Prompt tokens."""
WRITES_EACH_S = 0.02
CACHED_STEPS = 2_000
"""What an engine's cache holds: 128,000 tokens."""
BUSY = 1 / 4
"""Of all slots: while fewer are taken, nobody minds who has most to do."""
LOOK_S = 2.0
"""Between two looks of a gateway at the engines' own gauges."""

MOST_SPREAD = 2.0
"""Times the mean that the busiest may have to do, at p99: the bound, and one long request that came since."""

POLICIES: dict[str, Callable[[random.Random], Policy]] = {
    "round_robin": lambda dice: round_robin(),
    "least_load": lambda dice: least_load(),
    "power_of_two": lambda dice: power_of_two(dice.random),
    "session": lambda dice: session(power_of_two(dice.random)),
    "prefix": lambda dice: session(prefix(power_of_two(dice.random))),
}


@dataclass(frozen=True)
class Request:
    at: float
    steps: tuple[int, ...]
    output: int
    expected: int
    """What the gateway thinks of its output."""
    session: str = ""

    @property
    def prompt(self) -> int:
        return STEP_TOKENS * len(self.steps)

    def call(self, *, reads_prompts: bool) -> Call:
        return Call(
            id="",
            route=Route.CHAT,
            model="demo",
            body=b"",
            expires_at=0,
            session=self.session,
            prefix=self.steps if reads_prompts else (),
        )


@dataclass
class Engine:
    """What an engine does with its time."""

    cache: Prefixes = field(default_factory=lambda: Prefixes(CACHED_STEPS))
    reading_until: float = 0.0
    inside: int = 0

    def take(self, request: Request, now: float) -> tuple[float, float, int]:
        """When the first token comes, when the last, and how much of the prompt it had."""
        had = STEP_TOKENS * self.cache.known(request.steps)
        self.cache.remember(request.steps)
        self.inside += 1
        first = max(now, self.reading_until) + (request.prompt - had) / READS_PER_S
        self.reading_until = first
        return first, first + request.output * WRITES_EACH_S * (1 + self.inside / SLOTS), had


@dataclass
class Found:
    """Of one run."""

    first_token_s: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    """The busiest replica over the mean, in tokens, seen at each request that met a busy fleet."""
    prompt: int = 0
    had: int = 0

    @property
    def mean_s(self) -> float:
        return sum(self.first_token_s) / len(self.first_token_s)

    def row(self, name: str) -> Row:
        waits, spread = sorted(self.first_token_s), sorted(self.spread)
        return {
            "policy": name,
            "first token mean ms": round(self.mean_s * 1e3, 1),
            "p50 ms": round(percentile(waits, 50) * 1e3, 1),
            "p99 ms": round(percentile(waits, 99) * 1e3, 1),
            "busiest / mean p50": round(percentile(spread, 50), 2),
            "p99": round(percentile(spread, 99), 2),
            "cached %": round(100 * self.had / self.prompt, 1),
        }


class World:
    """Gateways that know their own leases, and of the others what the engines' gauges told at the last look."""

    def __init__(self, policy: str, gateways: int, seed: int, found: Found) -> None:
        self.now = 0.0
        self._reads_prompts = policy == "prefix"
        self.engines = [Engine() for _ in range(REPLICAS)]
        self._work = [0.0] * REPLICAS
        """Tokens that each engine has to do, whoever sent them."""
        self.gateways = [self._gateway(policy, seed + index) for index in range(gateways)]
        self._waiting: list[deque[Request]] = [deque() for _ in range(gateways)]
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.found = found

    def _gateway(self, policy: str, seed: int) -> Fleet:
        fleet = Fleet(POLICIES[policy](random.Random(seed)), Everyone())
        for index in range(REPLICAS):
            replica = Replica(f"gpu{index}:8000", Scripted(), slots=SLOTS)
            fleet.add(replica)
            fleet.answered(replica, {"demo": None})
        return fleet

    def run(self, requests: list[Request]) -> None:
        door = itertools.cycle(range(len(self.gateways)))
        for request in requests:
            self._at(request.at, partial(self._come, request, next(door)))
        for index in range(len(self.gateways)):
            self._at(LOOK_S * index / len(self.gateways), partial(self._look, index, requests[-1].at))
        while self._events:
            self.now, _, happen = heapq.heappop(self._events)
            happen()

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), happen))

    def _come(self, request: Request, gateway: int) -> None:
        if sum(engine.inside for engine in self.engines) >= REPLICAS * SLOTS * BUSY:
            self.found.spread.append(max(self._work) * REPLICAS / sum(self._work))
        if not self._begin(request, gateway):
            self._waiting[gateway].append(request)

    def _begin(self, request: Request, gateway: int) -> bool:
        cost = request.prompt + 2 * request.expected
        lease = self.gateways[gateway].lease(request.call(reads_prompts=self._reads_prompts), (), cost)
        if lease is None:
            return False
        index = int(lease.replica.name[3:].partition(":")[0])
        first, last, had = self.engines[index].take(request, self.now)
        self._work[index] += request.prompt + 2 * request.output
        self.found.first_token_s.append(first - request.at)
        self.found.prompt += request.prompt
        self.found.had += had
        self._at(last, partial(self._end, request, lease, index, gateway))
        return True

    def _end(self, request: Request, lease: Lease, index: int, gateway: int) -> None:
        lease.release()
        self.engines[index].inside -= 1
        self._work[index] -= request.prompt + 2 * request.output
        waiting = self._waiting[gateway]
        while waiting and self._begin(waiting[0], gateway):
            waiting.popleft()

    def _look(self, gateway: int, until: float) -> None:
        fleet = self.gateways[gateway]
        for replica, engine in zip(fleet.replicas, self.engines, strict=True):
            fleet.told(replica, Load(waiting=0, running=engine.inside, kv_share=None))
        if self.now < until:
            self._at(self.now + LOOK_S, partial(self._look, gateway, until))


# --- requests -----------------------------------------------------------------------------------------------------


def strangers(dice: random.Random, seconds: float, per_second: float) -> list[Request]:
    """Nothing in common, and sizes as people's are: many small ones, few that are large."""
    fresh = itertools.count(1)
    return [
        _request(dice, at, tuple(itertools.islice(fresh, _steps(dice, median=12, widest=400))))
        for at in _arrivals(dice, seconds, per_second)
    ]


def conversations(dice: random.Random, seconds: float, per_second: float, *, names_sessions: bool) -> list[Request]:
    """Turns of conversations under a few system prompts, of which one has half of all: a hot prefix."""
    fresh = itertools.count(1)
    systems = [tuple(itertools.islice(fresh, 30)) for _ in range(12)]
    weights = [1 / rank**1.5 for rank in range(1, 13)]
    talks: list[tuple[str, tuple[int, ...]]] = []
    asked: list[Request] = []
    for at in _arrivals(dice, seconds, per_second):
        if len(talks) < 40 or dice.random() < 0.2:
            (system,) = dice.choices(systems, weights)
            talks.append((f"talk-{len(asked)}", system))
            talks = talks[-200:]
        place = dice.randrange(len(talks))
        name, before = talks[place]
        steps = (*before, *itertools.islice(fresh, _steps(dice, median=4, widest=40)))
        request = _request(dice, at, steps, name if names_sessions else "")
        talks[place] = (name, (*steps, *itertools.islice(fresh, request.output // STEP_TOKENS)))
        asked.append(request)
    return asked


def _request(dice: random.Random, at: float, steps: tuple[int, ...], session: str = "") -> Request:
    output = max(1, min(2_000, round(dice.lognormvariate(5, 0.8))))
    return Request(at, steps, output, max(1, round(output * dice.lognormvariate(0, 0.5))), session)


def _steps(dice: random.Random, median: int, widest: int) -> int:
    return max(1, min(widest, round(median * dice.lognormvariate(0, 1.2))))


def _arrivals(dice: random.Random, seconds: float, per_second: float) -> Iterator[float]:
    at = dice.expovariate(per_second)
    while at < seconds:
        yield at
        at += dice.expovariate(per_second)


# --- the measurement ----------------------------------------------------------------------------------------------

EVEN = ("round_robin", "least_load", "power_of_two")
KEEPING = ("power_of_two", "session", "prefix")

RUNS, QUICK_RUNS = 5, 2
"""Each with dice of its own, taken together: a few prompts that are very long decide much in one of them."""


def by_load(options: Options, gateways: int) -> dict[str, Found]:
    found = {name: Found() for name in EVEN}
    for seed in _seeds(options):
        requests = strangers(random.Random(seed), options.lasting(200, 60), 28)
        for name, sum_of_all in found.items():
            World(name, gateways, seed, sum_of_all).run(requests)
    return found


def by_memory(options: Options, gateways: int = 1, *, names_sessions: bool) -> dict[str, Found]:
    found = {name: Found() for name in KEEPING}
    for seed in _seeds(options):
        requests = conversations(random.Random(seed), options.lasting(200, 60), 20, names_sessions=names_sessions)
        for name, sum_of_all in found.items():
            World(name, gateways, seed, sum_of_all).run(requests)
    return found


def _seeds(options: Options) -> range:
    return range(options.seed, options.seed + (QUICK_RUNS if options.quick else RUNS))


async def measure(options: Options) -> Report:
    reading = f"reading {READS_PER_S:,} prompt tokens a second, caching {CACHED_STEPS * STEP_TOKENS:,}"
    report = Report({"engines": f"{REPLICAS}, {reading}", "gauges": f"looked at every {LOOK_S:.0f} s"})
    alone, many = by_load(options, 1), by_load(options, 16)
    named, unnamed = by_memory(options, names_sessions=True), by_memory(options, names_sessions=False)
    for title, found in {
        "Strangers, one gateway": alone,
        "Strangers, four gateways on the same engines": by_load(options, 4),
        "Strangers, sixteen": many,
        "Conversations with an X-Session-Id": named,
        "Conversations without": unnamed,
    }.items():
        report.tables[title] = [each.row(name) for name, each in found.items()]
    _promise_evenness(report, alone, many)
    _promise_memory(report, "with sessions", named["session"], named["power_of_two"])
    _promise_memory(report, "by prefix", unnamed["prefix"], unnamed["power_of_two"])
    report.tables["CPU of one lease, chosen and given back"] = [_cpu(name) for name in POLICIES]
    report.tables["CPU of a prompt's chain"] = [_chain_cpu(size) for size in (1_500, 65_536, 2**20)]
    return report


def _promise_evenness(report: Report, alone: dict[str, Found], many: dict[str, Found]) -> None:
    ratio = alone["power_of_two"].mean_s / alone["least_load"].mean_s
    says = "one gateway: first tokens by two choices come as soon as by least load, to a tenth"
    report.promise(says, f"{ratio:.2f} of its time", kept=ratio < 1.1)
    ratio = many["power_of_two"].mean_s / many["least_load"].mean_s
    report.promise("sixteen gateways: they come sooner", f"{ratio:.2f} of its time", kept=ratio < 1)


def _promise_memory(report: Report, how: str, found: Found, without: Found) -> None:
    kept, lost = found.had / found.prompt, without.had / without.prompt
    report.promise(f"{how}: a third more is cached", f"{kept:.0%} instead of {lost:.0%}", kept=kept > lost * 4 / 3)
    spread = percentile(sorted(found.spread), 99)
    report.promise(f"{how}: nobody is far above the mean", f"{spread:.2f} times, p99", kept=spread < MOST_SPREAD)


def _cpu(policy: str) -> Row:
    row: Row = {"policy": policy}
    for count in (2, 8, 32):
        fleet = Fleet(POLICIES[policy](random.Random(1)), Everyone())
        for index in range(count):
            replica = Replica(f"gpu{index}:8000", Scripted(), slots=SLOTS)
            fleet.add(replica)
            fleet.answered(replica, {"demo": None})
        chain = chain_of(b"x" * 1_500, ("t", "m"))
        request = Request(0, chain, 100, 100, "a-session" if policy == "session" else "")
        call = request.call(reads_prompts=policy == "prefix")

        def once(fleet: Fleet = fleet, call: Call = call) -> None:
            lease = fleet.lease(call, (), 500.0)
            assert lease is not None
            lease.release()

        row[f"of {count}, µs"] = round(min(timeit.repeat(once, number=2_000, repeat=5)) / 2_000 * 1e6, 1)
    return row


def _chain_cpu(size: int) -> Row:
    body = b'{"messages":[{"role":"user","content":"%b"}]}' % (b"What is a prefix? " * (size // 18))
    request = parse(Route.CHAT, body)
    number = max(5, min(2_000, 10_000_000 // size))
    took = min(timeit.repeat(lambda: prefix_of(request, "demo", ANONYMOUS), number=number, repeat=5)) / number
    parsing = min(timeit.repeat(lambda: parse(Route.CHAT, body), number=number, repeat=5)) / number
    steps = len(chain_of(prompt_of(request, LONGEST), ("t", "m")))
    return {
        "body": f"{len(body):,} bytes",
        "µs": round(took * 1e6, 1),
        "parsing it anyway, µs": round(parsing * 1e6, 1),
        f"steps of {BLOCK} bytes and more": steps,
    }


if __name__ == "__main__":
    sys.exit(scenario.main("routing", __doc__, measure))
