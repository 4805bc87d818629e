"""Runs a cluster until it is told to stop: its processes, its first model, and what a person sees of both."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx

from app.cluster.launchers.ray import words
from app.cluster.launchers.ray.launcher import RayLacks, RayLauncher
from gllm.cli import ending
from gllm.cli.child import Child, Lost, Program
from gllm.cli.panel import Panel
from gllm.cli.plan import Plan
from gllm.cli.rising import Rising
from gllm.cli.screen import Screen

STOPPED, FAILED, KILLED = 0, 1, 130

TAIL_SHOWN = 12


def run(plan: Plan, state_dir: Path) -> int:
    """The exit code, once all has ended."""
    screen = Screen(sys.stdout) if sys.stdout.isatty() else None
    lost = asyncio.run(Cluster(plan, state_dir, Panel(screen)).run())
    if lost is None:
        return STOPPED
    said = "".join(f"\n  | {line}" for line in lost.tail[-TAIL_SHOWN:])
    print(f"gllm: {lost.reason}{said}\n  Everything that was said: {logs_in(state_dir)}", file=sys.stderr)
    return FAILED


class Cluster:
    def __init__(self, plan: Plan, state_dir: Path, panel: Panel) -> None:
        self._plan = plan
        self._state_dir = state_dir
        self._panel = panel

    async def run(self) -> Lost | None:
        """Until it is stopped, or why it cannot be."""
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Lost | None] = loop.create_future()
        for number in ending.signals():
            loop.add_signal_handler(number, self._stop, number)
        for note in self._plan.notes:
            self._panel.say(note)
        gateway, *workers = (self._child(program) for program in (self._plan.gateway, *self._plan.workers))
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as http, asyncio.TaskGroup() as tasks:
            children = [tasks.create_task(child.keep(http)) for child in (gateway, *workers)]
            if self._plan.on_ray is not None:
                children.append(tasks.create_task(self._place(self._plan.on_ray)))
            rising = tasks.create_task(self._rise((gateway, *workers)))
            try:
                return await self._over
            finally:
                await _ended([rising])
                await _ended(children[:1])  # its running answers need the others
                await _ended(children[1:])

    def _child(self, program: Program) -> Child:
        self._panel.step(program.name, "starting")
        return Child(program, logs_in(self._state_dir), told=partial(self._say, program), noted=self._panel.say)

    def _say(self, program: Program, line: str) -> None:
        """What workers say of their own stopping is said already."""
        if not (self._over.done() and program in self._plan.workers):
            self._panel.line(program.name, line)

    def _stop(self, number: signal.Signals) -> None:
        if self._over.done():  # asked twice
            if ending.is_impatient(number):
                os._exit(KILLED)  # the keepers notice, and end everything
            return
        self._over.set_result(None)
        self._panel.hide()
        self._panel.say("\nStopping. Running answers may finish; once more stops at once.")

    def _fail(self, lost: Lost) -> None:
        if not self._over.done():
            self._over.set_result(lost)

    async def _rise(self, children: Sequence[Child]) -> None:
        if lost := await Rising(self._plan, self._panel).run(children):
            self._fail(lost)

    async def _place(self, wanted: words.Wanted) -> None:
        """Keep workers on the nodes of a Ray cluster."""
        try:
            async with RayLauncher(wanted, self._state_dir, on_change=self._seated, on_said=self._panel.say):
                await asyncio.Event().wait()
        except RayLacks as error:
            self._fail(Lost(str(error), ()))

    def _seated(self, seat: words.Seat) -> None:
        self._panel.step(seat.name, f"placed on {seat.node}" if seat.state is words.State.PLACED else seat.state.value)
        if seat.reason:
            self._panel.say(seat.reason)


def logs_in(state_dir: Path) -> Path:
    return state_dir / "logs" / "cluster"


async def _ended(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
