"""A hundred requests with one idempotency key: at once, and while the first one is being answered.

    python -m bench twins [--seed 7] [--quick] [--json FILE]

Promise: the engine works once for each key, and all hundred get the same bytes, as JSON and as a stream. Every answer
of this engine carries the number of its execution, so that two executions could not look alike.
"""

import random
import sys
from collections.abc import Sequence

from bench import scenario
from bench.client import End
from bench.engine import Shape
from bench.figures import Row, of
from bench.open_loop import Shot, chat, fire
from bench.processes import EngineProcess, GatewayProcess, Processes
from bench.scenario import Options, Report

TWINS = 100
ROUNDS, QUICK_ROUNDS = 10, 1
SHAPE = Shape(sequences=32, step_ms=10, prompt_steps=5)
TOKENS = 40
WORDS = 30

SPREAD = 1.5
"""Parts of an answer's time over which the later ones come: most attach to the running one, some find it finished."""

FORMS = {"JSON, at once": (False, 0.0), "stream, at once": (True, 0.0), "stream, one after another": (True, SPREAD)}


async def measure(options: Options) -> Report:
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    settings = {"MAX_CONCURRENT_REQUESTS": str(SHAPE.sequences)}
    report = Report(
        {
            "engine": f"{SHAPE}, {SHAPE.service_s(TOKENS) * 1e3:.0f} ms an answer",
            "requests": f"{TWINS} with one key and one body, {rounds} keys a row",
            "gateway": settings,
        }
    )
    dice = random.Random(options.seed)
    with Processes() as processes:
        engine = processes.engine(SHAPE)
        gateway = processes.gateway(engine, settings)
        rows = [
            await _row(form, stream, spread, rounds, dice, engine, gateway) for form, (stream, spread) in FORMS.items()
        ]
    report.tables["Twins"] = rows
    for row in rows:
        found = f"{row['executions']} executions for {row['keys']} keys"
        report.promise(f"{row['']}: one execution a key", found, kept=row["executions"] == row["keys"])
        found = f"{row['equal']} of {row['requests']}"
        report.promise(f"{row['']}: equal answers for all", found, kept=row["equal"] == row["requests"])
    return report


async def _row(
    form: str,
    stream: bool,
    spread: float,
    rounds: int,
    dice: random.Random,
    engine: EngineProcess,
    gateway: GatewayProcess,
) -> Row:
    before = engine.counts().taken
    shots: list[Shot] = []
    equal = 0
    for number in range(rounds):
        key = f"{form.replace(', ', '-').replace(' ', '-')}-{number}"
        request = chat(WORDS, TOKENS, stream=stream, headers=[f"idempotency-key: {key}"])
        over_s = spread * SHAPE.service_s(TOKENS)
        twins = [Shot(dice.uniform(0, over_s), request, keeps_body=True) for _ in range(TWINS)]
        await fire(gateway.port, twins, patience_s=20, connections=TWINS)
        equal += _equal(twins)
        shots += twins
    first = [shot.seen.first_token_s for shot in shots if shot.seen.first_token_s is not None]
    return {
        "": form,
        "keys": rounds,
        "requests": len(shots),
        "executions": engine.counts().taken - before,
        "equal": equal,
        "replayed or attached": sum("idempotent-replayed" in shot.seen.headers for shot in shots),
        "first token p99 ms": of(first, 99),
        "whole p99 ms": of([shot.seen.took_s for shot in shots], 99),
    }


def _equal(twins: Sequence[Shot]) -> int:
    """How many got the answer that most got, whole."""
    answers = [shot.seen.body for shot in twins if shot.seen.end is End.DONE]
    return max(map(answers.count, set(answers)), default=0)


if __name__ == "__main__":
    sys.exit(scenario.main("twins", __doc__, measure))
