"""A light tenant alone, and beside one that offers twenty times its share.

    python -m bench fairness [--seconds 60] [--seed 7] [--quick] [--json FILE]

Promise: the light tenant's p99 time to first token is within 20 % of what it is alone, and none of its requests is
refused. Both tenants weigh the same, so each one's share is half of the capacity; the light one uses a fifth of that.

What makes this a statement about the gateway: no gateway can take back a slot, so behind a full engine even the first
in line waits until somebody's answer ends. With this many short answers one ends every few milliseconds, while the time
to first token is mostly the reading of the prompt, as it is in real engines; and the engine's steps take as long in a
full batch as in an empty one, because what a full batch costs on a GPU is not the queue's doing. What is left is the
order. The first seconds do not count: a flood that fills an empty engine at once has all its answers end at once, too.
The same load in plain order of arrival (`ENABLE_BACKPRESSURE=false`) stands beside it.
"""

import random
import sys
from collections.abc import Sequence

from bench import scenario
from bench.client import End
from bench.engine import Shape
from bench.figures import Row, of
from bench.machine import Meter
from bench.open_loop import Lateness, Shot, chat, fire, poisson
from bench.processes import Processes
from bench.scenario import Options, Report
from bench.tenants import Tenant, file_of

SHAPE = Shape(sequences=120, step_ms=25, prompt_steps=24)
QUICK_SHAPE = Shape(sequences=40, step_ms=10, prompt_steps=6)
TOKENS = (12, 36)
"""The shortest and the longest answer; all between are as likely."""
WORDS = 30
LIGHT_USES = 0.2
HEAVY_OFFERS, QUICK_HEAVY_OFFERS = 20.0, 6.0
"""Both as parts of a tenant's share."""
TIMEOUT_S = 10
WARM_UP = 3.0
"""As parts of the longest answer's time."""

WITHIN = 0.2


async def measure(options: Options) -> Report:
    shape = QUICK_SHAPE if options.quick else SHAPE
    seconds = options.lasting(60, 2)
    offers = QUICK_HEAVY_OFFERS if options.quick else HEAVY_OFFERS
    share = shape.capacity(sum(TOKENS) / 2) / 2
    settings = {"MAX_CONCURRENT_REQUESTS": str(shape.sequences), "REQUEST_TIMEOUT": str(TIMEOUT_S)}
    report = Report(
        {
            "engine": f"{shape}, {2 * share:.0f} requests/s",
            "requests": f"streams of {TOKENS[0]} to {TOKENS[1]} tokens, the same for both tenants",
            "tenants": f"light offers {LIGHT_USES:g} of its share, heavy {offers:g} times its own",
            "gateway": settings,
            "load": f"Poisson, {seconds:.0f} s a row after a warm-up",
        }
    )
    light, heavy = Tenant("light"), Tenant("heavy")
    run = _Run(shape, settings, (light, heavy), share, offers, options.seed)
    alone = await run.row("alone", seconds, beside=False, lateness=report.lateness)
    beside = await run.row("beside heavy", seconds, beside=True, lateness=report.lateness)
    rows = [alone, beside]
    if not options.quick:
        rows.append(await run.row("beside heavy, first come, first served", 6, beside=True, backpressure="false"))
    report.tables["The light tenant"] = rows
    _judge(report, alone, beside, quick=options.quick)
    return report


def _judge(report: Report, alone: Row, beside: Row, *, quick: bool) -> None:
    before, after = alone["first token p99 ms"], beside["first token p99 ms"]
    assert isinstance(before, float)
    assert isinstance(after, float)
    found = f"{before:.0f} ms alone, {after:.0f} ms beside ({after / before - 1:+.0%})"
    within = 2.0 if quick else WITHIN
    report.promise(
        "the light tenant's p99 time to first token stays within 20 %", found, kept=after <= before * (1 + within)
    )
    lost = beside["not answered"]
    report.promise("all its requests are answered", f"{lost} were not", kept=lost == 0)


class _Run:
    def __init__(
        self,
        shape: Shape,
        settings: dict[str, str],
        tenants: tuple[Tenant, Tenant],
        share: float,
        offers: float,
        seed: int,
    ) -> None:
        self._shape = shape
        self._settings = settings
        self._light, self._heavy = tenants
        self._share = share
        self._offers = offers
        self._seed = seed
        self._warm_up_s = WARM_UP * shape.service_s(max(TOKENS))

    async def row(
        self,
        name: str,
        seconds: float,
        *,
        beside: bool,
        backpressure: str = "true",
        lateness: list[Lateness] | None = None,
    ) -> Row:
        """With processes of its own, and the same requests of the light tenant each time."""
        seconds += self._warm_up_s
        shots = self._shots(self._light, LIGHT_USES, seconds, self._seed)
        if beside:
            shots += self._shots(self._heavy, self._offers, seconds, self._seed + 1)
        with Processes() as processes:
            engine = processes.engine(self._shape)
            known = processes.file("tenants.toml", file_of((self._light, self._heavy)))
            settings = {**self._settings, "TENANTS_FILE": str(known), "ENABLE_BACKPRESSURE": backpressure}
            gateway = processes.gateway(engine, settings, key=self._light.key)
            meter = Meter((gateway.pid, engine.pid))
            late = await fire(gateway.port, shots, patience_s=TIMEOUT_S + 5, connections=2 * self._shape.sequences)
            (ours, gateways, engines), strangers = meter.stop()
        if lateness is not None:
            lateness.append(late)
        return {
            "": name,
            **_outcomes([shot for shot in shots if shot.kind == self._light.name and shot.at >= self._warm_up_s]),
            **_of_the_other([shot for shot in shots if shot.kind == self._heavy.name], seconds),
            "late p99 ms": late.p99_s * 1e3,
            "gateway cores": gateways,
            "other cores": round(ours + engines + strangers, 2),
        }

    def _shots(self, tenant: Tenant, offers: float, seconds: float, seed: int) -> list[Shot]:
        dice = random.Random(seed)
        return [
            Shot(at, chat(WORDS, dice.randint(*TOKENS), stream=True, key=tenant.key), tenant.name)
            for at in poisson(dice, offers * self._share, seconds)
        ]


def _outcomes(shots: Sequence[Shot]) -> Row:
    firsts = [shot.seen.first_token_s for shot in shots if shot.seen.first_token_s is not None]
    return {
        "requests": len(shots),
        "not answered": sum(shot.seen.end is not End.DONE for shot in shots),
        "first token p50 ms": of(firsts, 50),
        "first token p99 ms": of(firsts, 99),
    }


def _of_the_other(shots: Sequence[Shot], seconds: float) -> Row:
    done = sum(shot.seen.end is End.DONE and shot.at + shot.seen.took_s < seconds for shot in shots)
    return {"heavy offers/s": len(shots) / seconds, "heavy gets/s": done / seconds}


if __name__ == "__main__":
    sys.exit(scenario.main("fairness", __doc__, measure))
