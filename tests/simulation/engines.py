"""The engines of a world: scripted ones, each in whatever trouble its faults bring at the time."""

import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.clock import Clock
from app.engines.scripted import Script, Scripted
from app.errors import EngineBroken, EngineBusy, EngineError, EngineFailed, EngineNonsense, EngineStalled
from app.generation import Call
from tests.simulation.world import EnginePlan, Fault, Trouble, Visit, World

_BREAKS: list[type[EngineError]] = [EngineBroken, EngineStalled, EngineNonsense]
_LIES: list[Any] = [{"prompt_tokens": -1, "completion_tokens": 2**70}, {"completion_tokens": 2**40}, "none", [], {}]


BESIDE_TOKENS = 4
"""Events of a stream: the role, the stop, the usage, the end."""


def goes_on_with(call: Call) -> str | None:
    """The text so far, if the rest of an answer is asked for."""
    body = json.loads(call.body)
    return str(body["messages"][-1]["content"]) if body.get("continue_final_message") else None


class Actor:
    """One engine. Its answers name the request, itself, the attempt and the place in every token, so that none can be
    mixed up."""

    def __init__(self, plan: EnginePlan, world: World, visits: Mapping[str, Visit], clock: Clock) -> None:
        self._plan = plan
        self._seed = world.seed
        self._visits = visits
        self._faults: list[Fault] = []
        self._asked: Counter[str] = Counter()
        self.engine = Scripted(
            serves=dict.fromkeys(plan.models, 4_096),
            script=self._script,
            slots=plan.slots,
            places=plan.places,
            first_byte_s=world.settings["FIRST_BYTE_TIMEOUT"],
            idle_s=world.settings["IDLE_TIMEOUT"],
            clock=clock,
        )

    def begin(self, fault: Fault) -> None:
        self._faults.append(fault)
        self._live()

    def end(self, fault: Fault) -> None:
        self._faults.remove(fault)
        self._live()

    def _live(self) -> None:
        has = {fault.trouble for fault in self._faults}
        if (Trouble.DEAD in has) is not self.engine.dead:
            (self.engine.revive if self.engine.dead else self.engine.die)()
        (self.engine.freeze if Trouble.FROZEN in has else self.engine.thaw)()

    def _script(self, call: Call) -> Script:
        """What is drawn depends on which attempt at this engine it is, not on when it comes."""
        plan, visit = self._plan, self._visits[call.id]
        self._asked[call.id] += 1
        attempt = f"{call.id}.{plan.name}.{self._asked[call.id]}"
        rng = random.Random(f"{self._seed} {attempt}")
        begun = len((goes_on_with(call) or "").split())
        script = Script(
            words=tuple(f"{attempt}.{index} " for index in range(begun, visit.tokens)),
            first_after_s=plan.first_after_s * (1 + visit.prompt_chars / 1_000),
            pace_s=plan.pace_s,
            prompt_tokens=1 + visit.prompt_chars // 4 + begun,
            events_per_block=plan.events_per_block,
        )
        for fault in self._faults:
            if rng.random() < fault.share:
                script = replace(script, **_harm(fault.trouble, call, script, rng))
        return script


def _harm(trouble: Trouble, call: Call, script: Script, rng: random.Random) -> dict[str, Any]:
    """What a trouble changes in what would else have been done."""
    blocks = math.ceil((len(script.words) + BESIDE_TOKENS) / script.events_per_block) if call.stream else 1
    middle = rng.randrange(blocks + 1)
    match trouble:
        case Trouble.STORM:
            return {"refuse_with": EngineBusy(retry_after=rng.choice([None, 0.5, 30.0]))}
        case Trouble.SICK:
            return {"refuse_with": EngineFailed()}
        case Trouble.BREAKING:
            return {"break_at": middle, "break_with": rng.choice(_BREAKS)}
        case Trouble.STALLING:
            return {"stall_at": middle}
        case Trouble.SLOW:
            return {"first_after_s": script.first_after_s * 10 + 0.1, "pace_s": script.pace_s * 10 + 0.02}
        case Trouble.LYING:
            return rng.choice([{"tells_usage": False}, {"lies": rng.choice(_LIES)}])
        case Trouble.UNENDING:
            return rng.choice([{"endless": True, "pace_s": max(script.pace_s, 0.05)}, {"ends_properly": False}])
        case Trouble.DEAD | Trouble.FROZEN:
            return {}
