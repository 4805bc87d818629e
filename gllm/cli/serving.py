"""Runs a gateway until it is told to stop: the socket, the server, the signals, and what a person sees of it."""

import asyncio
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler

import uvicorn
import uvloop

from app.cluster.launchers.plan import missing
from app.gateway.app import Gateway
from app.gateway.connections import allow_open_files
from app.gateway.listener import BACKLOG, Address, CannotListen, listener, sharing
from app.gateway.siblings import Family
from app.settings import Settings
from gllm.cli import ending
from gllm.cli.greeting import greeting, near
from gllm.cli.logs import configure
from gllm.cli.screen import Progress, Screen, say

STOPPED, FAILED, KILLED = 0, 1, 130

KEEP_ALIVE_S = 100
"""Longer than programs and proxies keep a connection for nothing (Go 90, nginx and the clouds' balancers 60, Node 4):
who asks on one that we are just closing gets no answer."""

TAIL_SHOWN = 12

LAST_WRITES_S = 5
"""All answers have ended by then; their last bytes may still be on their way."""

PATIENCE_S = 3.0
"""For servers that are said to run already."""


class CannotServe(Exception):
    """The text is a sentence for the person who starts the gateway."""


def serve(settings: Settings, early: MemoryHandler, *, quiet: bool = False, family: Family | None = None) -> int:
    """The exit code, once all has ended. `early` holds what was logged before there were settings; `quiet`: somebody
    else tells people how it goes; `family`: of one of several.
    """
    screen = Screen(sys.stderr) if sys.stderr.isatty() else None
    if screen is not None:
        sys.stderr = screen
    configure(settings.logs, early)
    allow_open_files()
    try:
        at = Address(settings.listen.host, settings.listen.port, "HOST", "add: --port ")
        with (sharing if settings.listen.processes > 1 else listener)(at) as listening:
            urls = ", ".join(settings.engine.urls)
            progress = Progress(screen, f"waiting for {urls}" if urls else "starting")
            if quiet:
                progress.done()
            return uvloop.run(Serving(settings, listening, progress, quiet=quiet, family=family).run())
    except (CannotServe, CannotListen) as error:
        print(f"gllm: {error}", file=sys.stderr)
        return FAILED


class Serving:
    def __init__(
        self, settings: Settings, listener: socket.socket, progress: Progress, *, quiet: bool, family: Family | None
    ) -> None:
        if lacking := missing(settings.engine):
            raise CannotServe(lacking)
        self._settings = settings
        self._listener = listener
        self._url = near(*listener.getsockname()[:2])
        self._progress = progress
        self._quiet = quiet
        self._stopping = asyncio.Event()
        self._said: deque[str] = deque(maxlen=TAIL_SHOWN)
        self._gateway = Gateway(settings, on_progress=self._engine_says, family=family)
        self._server = _Server(_config(settings, self._gateway))

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in ending.signals():
            loop.add_signal_handler(number, self._stop, number)
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._drain())]
            if not self._quiet:
                beside.append(tasks.create_task(self._greet()))
            try:
                await self._server.serve(sockets=[self._listener])
            finally:
                for task in beside:
                    task.cancel()
        self._progress.done()
        if self._gateway.supply.failure:
            raise CannotServe(self._explained(self._gateway.supply.failure))
        return STOPPED

    async def _greet(self) -> None:
        """Say where the gateway is, and how to talk to it, once there is somebody to talk to."""
        urls = self._settings.engine.urls
        while not (self._gateway.fleet.ready or self._stopping.is_set()):
            self._progress.tick()
            await asyncio.sleep(0.1)
            if urls and self._progress.seconds > PATIENCE_S:
                say(f"Nothing answers at {', '.join(urls)} yet. Until it does, the gateway at {self._url} says 503.")
                urls = ()
        if not self._stopping.is_set():
            self._progress.done()
            models, keyed = list(self._gateway.fleet.models), self._gateway.tenants is not None
            say(greeting(self._url, models, self._progress.seconds, keyed=keyed))
            if (internal := self._gateway.internal) is not None:
                say(f"Metrics and probes, for machines: {near(*internal.listening.getsockname()[:2])}")

    def _engine_says(self, name: str, line: str) -> None:
        self._said.append(line)
        self._progress.line(name, line)

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():  # asked twice
            if ending.is_impatient(number):
                self._progress.done()
                os._exit(KILLED)  # the keepers notice, and end the engines
            return
        self._stopping.set()
        self._gateway.admission.drain(self._settings.listen.drain_s)
        self._progress.done()
        if not (self._quiet or self._gateway.supply.failure):
            say("\nStopping. Running answers may finish; once more stops at once.")

    async def _drain(self) -> None:
        """Until the last answer has ended, newcomers are still told why they are not served, and by when to come."""
        await self._stopping.wait()
        await self._gateway.admission.empty()
        self._server.should_exit = True

    def _explained(self, failure: str) -> str:
        said = "".join(f"\n  | {line}" for line in self._said)
        return f"{failure}{said}\n  Everything it said: {self._settings.storage.state_dir / 'logs'}"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours are set already; uvicorn would raise each once more at the end, and so spoil the exit code."""
        yield


def _config(settings: Settings, gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        gateway.app,
        http=gateway.protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_WRITES_S,
    )
