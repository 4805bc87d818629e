"""Several gateway processes as one: they share a port, and each has a core. Kept until they are told to stop.

Each is a `gllm serve` of its own, with a port of its own for metrics and probes. What they must agree on they share
through Redis, as gateways on several machines do (docs/adr/0024).
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from app.cluster.launchers import keeper
from app.cluster.launchers.losses import ending
from app.gateway.listener import Address, CannotListen, listener, shared
from app.settings import Settings
from gllm.cli.child import FIRST_PAUSE_S, GLLM, LONG_LIFE_S, LONGEST_PAUSE_S, POLL_S, answers
from gllm.cli.greeting import near

STOPPED, FAILED, KILLED = 0, 1, 130

SLACK_S = 6.0
"""Beyond the time that a stop waits for running answers."""


def serve(settings: Settings, words: Sequence[str], *, quiet: bool = False) -> int:
    """The exit code, once all have ended. `words`: our own command line, after `gllm`."""
    listen, telemetry = settings.listen, settings.telemetry
    try:
        for number in range(listen.processes):  # somebody else's answer there would be taken for ours
            port = (telemetry.metrics_port or 0) + number
            listener(Address(telemetry.metrics_host, port, "METRICS_HOST", "set METRICS_PORT=")).close()
        with shared(Address(listen.host, listen.port, "HOST", "add: --port ")) as held:
            port = held.getsockname()[1]
            return asyncio.run(Several(settings, (*words, "--port", str(port)), port, quiet=quiet).run())
    except CannotListen as error:
        print(f"gllm: {error}", file=sys.stderr)
        return FAILED


class Several:
    def __init__(self, settings: Settings, words: Sequence[str], port: int, *, quiet: bool) -> None:
        self._words = words
        self._url = near(settings.listen.host, port)
        self._grace_s = settings.listen.drain_s + SLACK_S
        self._probes = [_probes(settings, number) for number in range(settings.listen.processes)]
        self._quiet = self._greeted = quiet
        self._up: set[int] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[int] = loop.create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as http, asyncio.TaskGroup() as tasks:
            kept = [tasks.create_task(self._keep(number, http)) for number in range(len(self._probes))]
            try:
                return await self._over
            finally:
                for each in kept:
                    each.cancel()

    def _stop(self) -> None:
        if self._over.done():  # asked twice
            os._exit(KILLED)  # the keepers notice, and end the gateways
        self._over.set_result(STOPPED)
        if not self._quiet:
            print("\nStopping. Running answers may finish; once more stops at once.", flush=True)

    async def _keep(self, number: int, http: httpx.AsyncClient) -> None:
        """Started again when it dies. One that has never been up has said why, and ends all."""
        deaths = 0
        while True:
            began = time.monotonic()
            code = await self._live(number, http)
            if number not in self._up:
                if not self._over.done():
                    self._over.set_result(code if code > 0 else FAILED)
                return
            deaths = 1 if time.monotonic() - began > LONG_LIFE_S else deaths + 1
            pause_s = min(FIRST_PAUSE_S * 2 ** (deaths - 1), LONGEST_PAUSE_S)
            how = f"gateway process {number} ended by itself: {ending(code)}."
            print(f"gllm: {how} It is started again in {pause_s:g} s.", file=sys.stderr, flush=True)
            await asyncio.sleep(pause_s)

    async def _live(self, number: int, http: httpx.AsyncClient) -> int:
        """One life, to its exit code. Being cancelled ends it, as a stop does."""
        command = (*GLLM, *self._words, "--as-process", str(number))
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(Path(keeper.__file__)), str(self._grace_s), *command, stdin=asyncio.subprocess.PIPE
        )
        async with asyncio.TaskGroup() as tasks:
            look = tasks.create_task(self._look_at(number, http))
            try:
                return await process.wait()
            finally:
                look.cancel()
                if process.stdin is not None:
                    process.stdin.close()  # the keeper's word to end it
                await process.wait()

    async def _look_at(self, number: int, http: httpx.AsyncClient) -> None:
        """Until it is up."""
        while True:
            await asyncio.sleep(POLL_S)
            if await answers(http, f"{self._probes[number]}/livez"):
                break
        self._up.add(number)
        self._greet()

    def _greet(self) -> None:
        if not self._greeted and len(self._up) == len(self._probes):
            print(f"{len(self._up)} gateway processes share {self._url}. Metrics and probes of each, for machines:")
            print("".join(f"  {url}\n" for url in self._probes), end="", flush=True)
            self._greeted = True


def _probes(settings: Settings, number: int) -> str:
    telemetry = settings.telemetry
    return near(telemetry.metrics_host, (telemetry.metrics_port or 0) + number)
