"""Ten thousand requests of which a fifth hang up at random moments: what is left behind, and what is charged.

    python -m bench hangups [--seconds N] [--seed 7] [--quick] [--json FILE]

Promise: afterwards nothing is held, neither at the engine (sequences) nor at the gateway: nobody is inside, all slots
can be taken at once, and of each tenant's limits nothing is taken but what the request takes that asks. The tokens in
the ledger of those who stayed are those that the engine counted for them, to the token. What those who left are charged
stands beside what was made for them.

Slightly more is offered than can be done, so that some hang up at work and some in the queue; with a FIN or a RST,
before the first byte of the answer or after it, streams and whole answers.
"""

import asyncio
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from time import perf_counter

from bench import scenario
from bench.client import End
from bench.engine import Count, Counts, Shape
from bench.figures import Row
from bench.open_loop import HangUp, Shot, chat, fire, poisson
from bench.processes import EngineProcess, GatewayProcess, Processes
from bench.scenario import Options, Report
from bench.tenants import Tenant, file_of

REQUESTS, QUICK_REQUESTS = 10_000, 400
LOAD = 1.1
LEAVE = 0.2
LEAVE_WITHIN = 1.5
"""Parts of an answer's time: some of those who mean to leave have their answer before."""

SHAPE = Shape(sequences=32, step_ms=10, prompt_steps=3)
TOKENS = (4, 16)
WORDS = 30
SETTLED_WITHIN_LOOKS = 100

STAYS, LEAVES = "stays", {True: "leaves-streams", False: "leaves-wholes"}
"""The tenants, and what the engine knows them by (`user`)."""
TENANTS = (STAYS, *LEAVES.values())
LIMITS = {"concurrent": 10_000, "tokens_per_minute": 1_000_000_000}
"""Far away, so that they are counted and never reached."""


async def measure(options: Options) -> Report:
    per_second = LOAD * SHAPE.capacity(sum(TOKENS) / 2)
    seconds = options.lasting(REQUESTS / per_second, QUICK_REQUESTS / per_second)
    settings = {"MAX_CONCURRENT_REQUESTS": str(SHAPE.sequences), "EXACT_USAGE": "true"}
    report = Report(
        {
            "engine": f"{SHAPE}, {per_second / LOAD:.0f} requests/s",
            "requests": f"{TOKENS[0]} to {TOKENS[1]} tokens, half of them streams",
            "load": f"Poisson, {per_second:.0f}/s for {seconds:.1f} s",
            "hang-ups": f"{LEAVE:.0%}, within {LEAVE_WITHIN:g} times an answer's time, half of them by RST",
            "gateway": settings,
        }
    )
    tenants = [*(Tenant(name, limits=LIMITS) for name in TENANTS), Tenant("operator", admin=True)]
    dice = random.Random(options.seed)
    keys = {tenant.name: tenant.key for tenant in tenants}
    shots = [_shot(at, dice, keys) for at in poisson(dice, per_second, seconds)]
    with Processes() as processes:
        engine = processes.engine(SHAPE)
        known = processes.file("tenants.toml", file_of(tenants))
        settings = {**settings, "TENANTS_FILE": str(known)}
        gateway = processes.gateway(engine, settings, key=keys["operator"])
        await fire(gateway.port, shots, patience_s=20, connections=200)
        await _nothing_left(report, engine, gateway)
        counts = engine.counts()
        _outcomes(report, shots, gateway)
        _ledger(report, counts, gateway)
        await _all_slots(report, engine, gateway, keys["operator"])
        for who in TENANTS:
            _nothing_reserved(report, gateway, who, keys[who])
    return report


def _shot(at: float, dice: random.Random, keys: dict[str, str]) -> Shot:
    tokens = dice.randint(*TOKENS)
    stream, leaves = dice.random() < 0.5, dice.random() < LEAVE
    who = LEAVES[stream] if leaves else STAYS
    longest_s = LEAVE_WITHIN * SHAPE.service_s(tokens)
    hang_up = HangUp(dice.uniform(0, longest_s), reset=dice.random() < 0.5) if leaves else None
    request = chat(WORDS, tokens, stream=stream, user=who, key=keys[who])
    return Shot(at, request, who, hang_up)


# --- nothing is held ----------------------------------------------------------------------------------------------


async def _nothing_left(report: Report, engine: EngineProcess, gateway: GatewayProcess) -> None:
    began = perf_counter()
    for _ in range(SETTLED_WITHIN_LOOKS):
        if not (held := _held(engine, gateway)):
            break
        await asyncio.sleep(0.05)
    took = perf_counter() - began
    found = ", ".join(f"{count} {name}" for name, count in held.items()) or f"nothing, {took:.2f} s after the last"
    report.promise("nothing is held afterwards", found, kept=not held)


def _held(engine: EngineProcess, gateway: GatewayProcess) -> dict[str, float]:
    counts, samples = engine.counts(), gateway.samples()
    held = {
        "sequences run": counts.running,
        "sequences wait": counts.waiting,
        "requests inside": gateway.health()["requests_active"],
        "requests on their way": samples["llm_requests_in_progress"] - 1,  # the scrape itself
    }
    return {name: count for name, count in held.items() if count}


async def _all_slots(report: Report, engine: EngineProcess, gateway: GatewayProcess, key: str) -> None:
    """One that was not given back would leave a sequence of the engine idle."""
    shots = [Shot(0, chat(WORDS, 4 * max(TOKENS), stream=True, key=key)) for _ in range(2 * SHAPE.sequences)]
    await fire(gateway.port, shots, patience_s=20, connections=len(shots))
    most = engine.counts().most_running
    report.promise("all slots can be taken", f"{most} of {SHAPE.sequences} were", kept=most == SHAPE.sequences)


def _nothing_reserved(report: Report, gateway: GatewayProcess, who: str, key: str) -> None:
    """The gateway tells with each answer what is left of each limit, without what this request takes."""
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    answer = gateway.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
    left = {found[1]: int(found[2]) for found in re.finditer(r'"([a-z-]+)";r=([0-9]+)', answer.headers["ratelimit"])}
    kept = left["concurrent"] == LIMITS["concurrent"] - 1 and left["tokens"] > LIMITS["tokens_per_minute"] - 100
    found = f"{left['concurrent']:,} of {LIMITS['concurrent']:,} places, {left['tokens']:,} tokens are left to the next"
    report.promise(f"nothing is reserved for {who}", found, kept=kept)


# --- what became of them ------------------------------------------------------------------------------------------


def _outcomes(report: Report, shots: Sequence[Shot], gateway: GatewayProcess) -> None:
    rows: list[Row] = []
    for who in TENANTS:
        ends = Counter(shot.seen.end for shot in shots if shot.kind == who)
        rows.append({"": who, "requests": ends.total(), **{end.value: ends[end] for end in End}})
    report.tables["What became of them, seen by the client"] = rows
    odd = sum(shot.seen.end in (End.BROKEN, End.UNANSWERED) for shot in shots)
    report.promise("no answer breaks off, and none is missing", f"{odd} did", kept=odd == 0)
    samples = gateway.samples()
    told = {name: value for name, value in samples.items() if name.startswith("gllm_request_outcomes_total") and value}
    report.notes.append(
        "The gateway's words for it: " + ", ".join(f"{each:.0f} {name[28:-1]}" for name, each in told.items())
    )


# --- what is charged ----------------------------------------------------------------------------------------------


def _ledger(report: Report, counts: Counts, gateway: GatewayProcess) -> None:
    charged = {row["tenant"]: row for row in gateway.get("/admin/usage").json()["rows"]}
    rows: list[Row] = []
    for who in TENANTS:
        finished, aborted = counts.finished.get(who, Count()), counts.aborted.get(who, Count())
        mine = charged.get(who, {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0})
        rows.append(
            {
                "": who,
                "finished": finished.requests,
                "aborted": aborted.requests,
                "prompt made": finished.prompt_tokens + aborted.prompt_tokens,
                "prompt charged": mine["prompt_tokens"],
                "tokens made": finished.completion_tokens + aborted.completion_tokens,
                "tokens charged": mine["completion_tokens"],
            }
        )
    report.tables["What the engine made, and what is in the ledger"] = rows
    stays = rows[0]
    found = (
        f"{stays['prompt charged']} + {stays['tokens charged']}, made {stays['prompt made']} + {stays['tokens made']}"
    )
    kept = (stays["prompt charged"], stays["tokens charged"]) == (stays["prompt made"], stays["tokens made"])
    report.promise("those who stayed are charged what the engine made for them", found, kept=kept)


if __name__ == "__main__":
    sys.exit(scenario.main("hangups", __doc__, measure))
