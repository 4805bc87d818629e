"""Runs a cluster until it is told to stop: its processes, its first model, and what a person sees of both."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx

from gllm.cli.asking import key_of
from gllm.cli.child import Child, Lost, Program
from gllm.cli.gateway import Gateway, Member, NoAnswer, Unreachable, Wanted
from gllm.cli.greeting import greeting, greeting_without_a_model
from gllm.cli.panel import Panel, watching
from gllm.cli.plan import Plan
from gllm.cli.screen import Screen

STOPPED, FAILED, KILLED = 0, 1, 130

TAIL_SHOWN = 12
POLL_S = 0.1
PATIENCE_S = 3.0
"""For workers that are said to run already."""


def run(plan: Plan, logs: Path) -> int:
    """The exit code, once all has ended."""
    screen = Screen(sys.stdout) if sys.stdout.isatty() else None
    lost = asyncio.run(Cluster(plan, logs, Panel(screen)).run())
    if lost is None:
        return STOPPED
    said = "".join(f"\n  | {line}" for line in lost.tail[-TAIL_SHOWN:])
    print(f"gllm: {lost.reason}{said}\n  Everything that was said: {logs}", file=sys.stderr)
    return FAILED


class CannotStart(Exception):
    def __init__(self, lost: Lost) -> None:
        self.lost = lost
        super().__init__(lost.reason)


class Cluster:
    def __init__(self, plan: Plan, logs: Path, panel: Panel) -> None:
        self._plan = plan
        self._logs = logs
        self._panel = panel

    async def run(self) -> Lost | None:
        """Until it is stopped, or why it cannot be."""
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Lost | None] = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop)
        for note in self._plan.notes:
            self._panel.say(note)
        gateway, *workers = (self._child(program) for program in (self._plan.gateway, *self._plan.workers))
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as http, asyncio.TaskGroup() as tasks:
            children = [tasks.create_task(child.keep(http)) for child in (gateway, *workers)]
            rising = tasks.create_task(self._bring_up((gateway, *workers)))
            try:
                return await self._over
            finally:
                await _ended([rising])
                await _ended(children[:1])  # its running answers need the others
                await _ended(children[1:])

    def _child(self, program: Program) -> Child:
        self._panel.step(program.name, "starting")
        return Child(program, self._logs, told=partial(self._say, program), noted=self._panel.say)

    def _say(self, program: Program, line: str) -> None:
        """What workers say of their own stopping is said already."""
        if not (self._over.done() and program in self._plan.workers):
            self._panel.line(program.name, line)

    def _stop(self) -> None:
        if self._over.done():  # asked twice
            os._exit(KILLED)  # the keepers notice, and end everything
        self._over.set_result(None)
        self._panel.hide()
        self._panel.say("\nStopping. Running answers may finish; once more stops at once.")

    def _fail(self, lost: Lost) -> None:
        if not self._over.done():
            self._over.set_result(lost)

    # --- from nothing to a cluster that serves --------------------------------------------------------------------

    async def _bring_up(self, children: Sequence[Child]) -> None:
        began = time.monotonic()
        key = self._plan.secret or key_of(None)
        try:
            async with Gateway(self._plan.url, key) as gateway:
                with watching(self._panel, f"Starting the gateway{_and_workers(self._plan.workers)}"):
                    await self._all_up(children)
                    members = await self._gathered(gateway)
                if self._plan.model is not None:
                    with watching(self._panel, f"Loading {self._plan.model}"):
                        members = await self._loaded(gateway, Wanted(model=self._plan.model))
        except NoAnswer as error:
            return self._fail(Lost(str(error), error.tail))
        except CannotStart as error:
            return self._fail(error.lost)
        models = list(dict.fromkeys(name for member in members for name in member.names))
        seconds = time.monotonic() - began
        if models:
            self._panel.say(greeting(self._plan.url, models, seconds, keyed=self._plan.keyed))
        else:
            self._panel.say(greeting_without_a_model(self._plan.url, sum(member.reachable for member in members)))
        return None

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

    async def _gathered(self, gateway: Gateway) -> tuple[Member, ...]:
        """Those that are there; where one must be that is not, once it is."""
        waits = bool(self._plan.workers or self._plan.model)
        told = bool(self._plan.workers)
        while True:
            members = await self._seen(gateway)
            missing = sorted(set(self._plan.expected) - {each.address for each in members if each.reachable})
            if not missing or (told and not waits):
                return members
            if not told and self._panel.seconds > PATIENCE_S:
                told = True
                then = f", and then loads {self._plan.model}" if self._plan.model else ""
                self._panel.say(f"Nothing answers at {', '.join(missing)} yet. The gateway goes on looking{then}.")
            await asyncio.sleep(POLL_S)

    async def _seen(self, gateway: Gateway) -> tuple[Member, ...]:
        try:
            return await gateway.workers()
        except Unreachable:  # it has died, and is being started again
            return ()

    async def _loaded(self, gateway: Gateway, wanted: Wanted) -> tuple[Member, ...]:
        """By all. A gateway that dies over it is asked again when it is back: what is loaded already stays so."""
        while True:
            try:
                return await self._load(gateway, wanted)
            except Unreachable:
                await asyncio.sleep(POLL_S)

    async def _load(self, gateway: Gateway, wanted: Wanted) -> tuple[Member, ...]:
        async for news in gateway.load(wanted):
            self._panel.follow(news)
        return await gateway.workers()


async def _ended(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _and_workers(workers: Sequence[Program]) -> str:
    return {0: "", 1: " and 1 worker"}.get(len(workers), f" and {len(workers)} workers")
