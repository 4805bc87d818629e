"""Several gateway processes as one: they share a port, and each has a core. Kept until they are told to stop.

Each is a `gllm serve` of its own, with a port of its own for metrics and probes. What they must agree on they share
through Redis, as gateways on several machines do (docs/adr/0024).
"""

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from app.cluster.launchers import keeper
from app.cluster.launchers.losses import ending
from app.gateway.listener import Address, CannotListen, listener, shared
from app.settings import Settings
from app.settings.parts import part, shared_out
from gllm.cli.child import FIRST_PAUSE_S, GLLM, LONG_LIFE_S, LONGEST_PAUSE_S, POLL_S
from gllm.cli.ending import is_impatient, signals
from gllm.cli.family import KEY, place_of
from gllm.cli.greeting import near
from gllm.cli.screen import say

STOPPED, FAILED, KILLED = 0, 1, 130

SLACK_S = 6.0
"""Beyond the time that a stop waits for running answers."""

START_WITHIN_S = 60.0
"""It has only to import what it is made of, and to listen; but many may do so at once."""

HUNG_S = 30.0
"""Without a sign of life it is hung. Until then it costs those whom the kernel sends there; after it, its answers."""

LOOK_EVERY_S = 1.0


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
        _complain(str(error))
        return FAILED


class Several:
    def __init__(self, settings: Settings, words: Sequence[str], port: int, *, quiet: bool) -> None:
        self._words = words
        self._url = near(settings.listen.host, port)
        self._env = {**os.environ, KEY: secrets.token_hex(16)}
        self._grace_s = settings.listen.drain_s + SLACK_S
        self._probes = [place_of(settings, number) for number in range(settings.listen.processes)]
        self._shared_out = ", ".join(
            _said(name, whole, settings.listen.processes) for name, whole in shared_out(settings).items()
        )
        self._quiet = self._greeted = quiet
        self._up: set[int] = set()

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._over: asyncio.Future[int] = loop.create_future()
        for number in signals():
            loop.add_signal_handler(number, self._stop, number)
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as http, asyncio.TaskGroup() as tasks:
            kept = [tasks.create_task(self._keep(number, http)) for number in range(len(self._probes))]
            try:
                return await self._over
            finally:
                for each in kept:
                    each.cancel()

    def _stop(self, number: signal.Signals) -> None:
        if self._over.done():  # asked twice
            if is_impatient(number):
                os._exit(KILLED)  # the keepers notice, and end the gateways
            return
        self._over.set_result(STOPPED)
        if not self._quiet:
            say("\nStopping. Running answers may finish; once more stops at once.")

    async def _keep(self, number: int, http: httpx.AsyncClient) -> None:
        """Started again when it dies or hangs. One that has never been up ends all."""
        deaths = 0
        while True:
            began = time.monotonic()
            code, silent_s = await self._live(number, http)
            if number not in self._up:
                self._give_up(number, code, silent_s)
                return
            deaths = 1 if time.monotonic() - began > LONG_LIFE_S else deaths + 1
            pause_s = min(FIRST_PAUSE_S * 2 ** (deaths - 1), LONGEST_PAUSE_S)
            how = (
                f"gave no sign of life for {silent_s:g} s, and was killed"
                if silent_s
                else f"ended by itself: {ending(code)}"
            )
            _complain(f"gateway process {number} {how}. It is started again in {pause_s:g} s.")
            await asyncio.sleep(pause_s)

    def _give_up(self, number: int, code: int, silent_s: float) -> None:
        """One that has ended by itself has said why."""
        if self._over.done():
            return
        if silent_s:
            _complain(f"gateway process {number} did not come up within {silent_s:g} s, and was killed.")
        self._over.set_result(FAILED if silent_s or code <= 0 else code)

    async def _live(self, number: int, http: httpx.AsyncClient) -> tuple[int, float]:
        """One life: its exit code, and how long it was silent if it was killed for that. Being cancelled ends it, as a
        stop does."""
        command = (*GLLM, *self._words, "--as-process", str(number))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(keeper.__file__)),
            str(self._grace_s),
            *command,
            stdin=asyncio.subprocess.PIPE,
            env=self._env,
        )
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch(number, http, process))
            try:
                code = await process.wait()
            finally:
                watch.cancel()
                if process.stdin is not None:
                    process.stdin.close()  # the keeper's word to end it
                await process.wait()
        return code, 0.0 if watch.cancelled() else watch.result()

    async def _watch(self, number: int, http: httpx.AsyncClient, kept_by: asyncio.subprocess.Process) -> float:
        """Until it gives no sign of life for too long, which is returned; then it is killed."""
        patience_s = START_WITHIN_S
        while await self._lives(number, http, patience_s):
            self._up.add(number)
            self._greet()
            patience_s = HUNG_S
            await asyncio.sleep(LOOK_EVERY_S)
        if kept_by.returncode is None:
            kept_by.terminate()  # the keeper's word to grant no time: what does not turn finishes no answer
        return patience_s

    async def _lives(self, number: int, http: httpx.AsyncClient, within_s: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while True:
                    if await _is_well(http, f"{self._probes[number]}/livez"):
                        return True
                    await asyncio.sleep(POLL_S)
        return False

    def _greet(self) -> None:
        if not self._greeted and len(self._up) == len(self._probes):
            say(f"{len(self._up)} gateway processes share {self._url}. Each has its part of {self._shared_out}.")
            say("\n  ".join(("Metrics and probes of each, for machines:", *self._probes)))
            self._greeted = True


def _said(name: str, whole: int, of: int) -> str:
    most, least = part(whole, 0, of), part(whole, of - 1, of)
    together = sum(part(whole, number, of) for number in range(of))
    over = f", {together} together" if together > whole else ""
    return f"{name}={whole} ({most if most == least else f'{least} or {most}'}{over})"


async def _is_well(http: httpx.AsyncClient, probe: str) -> bool:
    """It answers, and not that its event loop stands still."""
    with suppress(httpx.HTTPError):
        return (await http.get(probe)).status_code == httpx.codes.OK
    return False


def _complain(sentence: str) -> None:
    say(f"gllm: {sentence}", complaint=True)
