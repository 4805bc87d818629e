"""From processes that have just been started to a cluster that serves: what is waited for, and what a person sees."""

import asyncio
import time
from collections.abc import Sequence

from app.cluster.control import WorkerState
from gllm.cli.asking import Misused, key_of
from gllm.cli.child import Child, Lost
from gllm.cli.gateway import Gateway, Load, Member, NoAnswer, Unreachable
from gllm.cli.greeting import greeting, greeting_without_a_model
from gllm.cli.panel import Panel, watching
from gllm.cli.plan import Plan

POLL_S = 0.1
LOOK_S = 0.5
"""Between two looks of ours at what the gateway sees: each is a line of its log."""
PATIENCE_S = 3.0
"""For workers that are said to run already."""


class CannotStart(Exception):
    def __init__(self, lost: Lost) -> None:
        self.lost = lost
        super().__init__(lost.reason)


class Rising:
    def __init__(self, plan: Plan, panel: Panel) -> None:
        self._plan = plan
        self._panel = panel
        self._began = time.monotonic()

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    async def run(self, children: Sequence[Child]) -> Lost | None:
        """Why it cannot be, if so."""
        try:
            async with Gateway(self._plan.url, self._plan.secret or key_of(None)) as gateway:
                with watching(self._panel, self._what_starts()):
                    await self._all_up(children)
                    members = await self._gathered(gateway)
                if self._plan.model is not None:
                    with watching(self._panel, f"Loading {self._plan.model}"):
                        members = await self._loaded(gateway, Load(model=self._plan.model))
        except NoAnswer as error:
            return Lost(str(error), error.tail)
        except Misused as error:
            return Lost(str(error), ())
        except CannotStart as error:
            return error.lost
        self._greet(members)
        return None

    def _what_starts(self) -> str:
        ours = len(self._plan.workers)
        return "Starting the gateway" + {0: "", 1: " and 1 worker"}.get(ours, f" and {ours} workers")

    def _greet(self, members: Sequence[Member]) -> None:
        plan = self._plan
        models = list(dict.fromkeys(name for member in members for name in member.names))
        if models:
            self._panel.say(greeting(plan.url, models, self._seconds, keyed=plan.keyed))
        else:
            self._panel.say(greeting_without_a_model(plan.url, len(members)))

    # --- processes ------------------------------------------------------------------------------------------------

    async def _all_up(self, children: Sequence[Child]) -> None:
        while True:
            for child in children:
                if child.lost.done():
                    raise CannotStart(child.lost.result())
                if child.up.is_set():
                    self._panel.step(child.program.name, "up")
            if all(child.up.is_set() for child in children):
                return self._panel.forget(self._plan.gateway.name)
            await asyncio.sleep(POLL_S)

    # --- workers --------------------------------------------------------------------------------------------------

    async def _gathered(self, gateway: Gateway) -> list[Member]:
        """Those that are there. If there is a model to load, or we started them: all, once they are."""
        told = bool(self._plan.workers or self._plan.on_ray)  # in other ways
        while True:
            members = await _seen(gateway)
            absent = self._absent(members)
            if not absent:
                return members
            if not told and self._seconds > PATIENCE_S:
                told = True
                then = f", and then loads {self._plan.model}" if self._plan.model else ""
                self._panel.say(
                    f"No worker of this cluster answers at {', '.join(absent)} yet. The gateway goes on looking{then}."
                )
                if self._plan.model is None:
                    return members
            await asyncio.sleep(LOOK_S)

    def _absent(self, members: Sequence[Member]) -> list[str]:
        if self._plan.on_ray is not None:
            return [""] * ((self._plan.on_ray.workers or 1) - len(members))
        return sorted(set(self._plan.expected) - {each.address for each in members})

    # --- the model ------------------------------------------------------------------------------------------------

    async def _loaded(self, gateway: Gateway, load: Load) -> list[Member]:
        """By all. A gateway that dies over it is asked again once it is back: what is loaded by then stays so."""
        while True:
            try:
                async for news in gateway.load(load):
                    self._panel.follow(news)
                return await _seen(gateway)
            except Unreachable:
                await self._at_rest(gateway)

    async def _at_rest(self, gateway: Gateway) -> None:
        """Workers carry out their orders, whoever gave them; one that does takes no other."""
        while True:
            await asyncio.sleep(LOOK_S)
            members = await _seen(gateway)
            busy = [each for each in members if each.state in (WorkerState.LOADING, WorkerState.DRAINING)]
            if not (self._absent(members) or busy):
                return


async def _seen(gateway: Gateway) -> list[Member]:
    """None by a gateway that has died, and is being started again."""
    try:
        return [each for each in await gateway.workers() if each.reachable]
    except Unreachable:
        return []
