"""Runs a worker until it is told to stop: its socket, its server, the signals, and what a person sees of it."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from urllib.parse import urlsplit

import uvloop

from app.cluster.control import Order, Status, WorkerState
from app.cluster.launchers.losses import EngineDidNotStart
from app.cluster.launchers.plan import WILDCARDS, Machine, doubts, part, url_of
from app.cluster.launchers.ports import NoPort
from app.cluster.worker.announce import Announcer
from app.cluster.worker.grip import NoGrip
from app.cluster.worker.server import create_app, serving
from app.cluster.worker.site import Post
from app.cluster.worker.worker import LocalWorker
from app.errors import LoadFailed
from app.gateway.listener import Address, CannotListen, PortTaken, listener
from app.settings import Settings
from gllm.cli import ending
from gllm.cli.logs import configure
from gllm.cli.screen import Progress, Screen, say
from gllm.cli.worker import own_name

log = logging.getLogger("gllm")

STOPPED, FAILED, KILLED = 0, 1, 130

PORTS_TRIED = 100
LAST_ANSWERS_S = 2.0
"""That running answers get when the worker stops; its engine may give them more."""


@dataclass(frozen=True)
class Station:
    """What a worker was started with."""

    settings: Settings
    host: str
    port: int
    name: str | None
    advertise: str | None
    loads: bool
    """Whether there is a model to load from the start."""


def work(station: Station, early: MemoryHandler) -> int:
    """The exit code, once all has ended. `early` holds what was logged before there were settings."""
    screen = Screen(sys.stderr) if sys.stderr.isatty() else None
    if screen is not None:
        sys.stderr = screen
    configure(station.settings.logs, early)
    try:
        with _listening(station.host, station.port) as listening:
            return uvloop.run(Working(station, listening, screen).run())
    except (CannotListen, EngineDidNotStart, NoGrip, NoPort) as error:
        print(f"gllm: {error}", file=sys.stderr)
        return FAILED


def _listening(host: str, first: int) -> socket.socket:
    """On that port, or on the next that is free."""
    for port in range(first, min(first + PORTS_TRIED, 65_536)):
        try:
            return listener(Address(host, port, "--host", "add: --port "))
        except PortTaken:
            say(f"Port {port} is taken; trying the next.")
    raise CannotListen(f"No port from {first} on is free. Stop what uses them, or choose another with --port.")


class Working:
    def __init__(self, station: Station, listening: socket.socket, screen: Screen | None) -> None:
        self._station = station
        self._settings = station.settings
        self._listening = listening
        self._screen = screen
        self._progress = Progress(screen, "starting")
        self._stopping = asyncio.Event()
        port: int = listening.getsockname()[1]
        self._host = _public_host(station)
        self._url = url_of(self._host, port)
        self._worker = self._made(station.name or own_name(port))

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in ending.signals():
            loop.add_signal_handler(number, self._stop, number)
        secret = self._settings.cluster.secret
        app = create_app(
            self._worker,
            secret=secret.get_secret_value() if secret else None,
            drain_s=self._settings.cluster.drain_s,
        )
        async with self._worker, serving(app, self._listening), self._beside():
            say(f"gllm worker {self._worker.name} takes orders at {self._url}.")
            await self._load()
            await self._stopping.wait()
            await self._worker.stop(drain_s=LAST_ANSWERS_S)
        self._progress.done()
        return STOPPED

    def _made(self, name: str) -> LocalWorker:
        settings = self._settings
        for doubtful in doubts(settings.engine, settings.telemetry):
            log.warning("%s", doubtful)
        gpus, on_cpu, threads = part(settings.engine, Machine.here(), 0)
        return LocalWorker(
            Post(name, _engine_host(self._station.host), self._host, gpus, on_cpu, threads, exclusive=True),
            settings.engine,
            settings.storage.state_dir,
            on_progress=lambda name, line: self._progress.line(name, line),
            heartbeat_s=settings.cluster.heartbeat_s,
            telemetry=settings.telemetry,
        )

    @asynccontextmanager
    async def _beside(self) -> AsyncIterator[None]:
        cluster = self._settings.cluster
        secret = cluster.secret.get_secret_value() if cluster.secret else None
        announcer = Announcer(self._url, cluster.gateway_urls, secret, cluster.heartbeat_s, self._say)
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(each()) for each in (announcer.run, self._report, self._tick)]
            try:
                yield
            finally:
                for task in beside:
                    task.cancel()

    async def _load(self) -> None:
        if self._station.loads:
            try:
                await self._worker.load(Order(model=self._settings.engine.model), drain_s=0.0)
            except LoadFailed as error:
                self._say(f"{error.message} Another model can be loaded.")
        else:
            self._progress.done()
            self._say("It has no model yet: a gateway gives it one, or POST /load_model.")

    async def _report(self) -> None:
        """Every change of state in a line."""
        before = self._worker.now
        while not self._stopping.is_set():
            now = await self._worker.news(before.version, 60)
            if now.state is not before.state:
                self._show(now)
            before = now

    def _show(self, status: Status) -> None:
        match status.state:
            case WorkerState.LOADING:
                self._progress = Progress(self._screen, f"loading {status.order.model if status.order else ''}")
            case WorkerState.READY:
                failed = f"{_failure(status)}\n" if status.failure else ""
                at = f" at {status.engine_url}" if status.engine_url else ""
                self._say(f"{failed}{status.name} serves {', '.join(status.names)}{at}.")
            case WorkerState.FAILED:
                self._say(f"{_failure(status) or status.reason}\nIt waits for another model.")
            case WorkerState.EMPTY:
                self._say(f"{status.name} has given its engine and its memory back.")
            case WorkerState.DRAINING:
                self._say(f"{status.name} takes nothing new. {status.reason}".rstrip())

    async def _tick(self) -> None:
        while True:
            self._progress.tick()
            await asyncio.sleep(0.2)

    def _say(self, sentence: str) -> None:
        if self._worker.now.state is not WorkerState.LOADING:
            self._progress.done()
        say(sentence)

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():  # asked twice
            if ending.is_impatient(number):
                self._progress.done()
                os._exit(KILLED)  # the keeper notices, and ends the engine
            return
        self._stopping.set()
        self._progress.done()
        say("\nStopping. Once more stops at once.")


def _failure(status: Status) -> str:
    if status.failure is None:
        return ""
    said = "".join(f"\n  | {line}" for line in status.failure.tail[-12:])
    return f"{status.failure.reason}{said}"


def _engine_host(host: str) -> str:
    """An engine is as reachable as its worker: whoever may command one is to use the other."""
    return "127.0.0.1" if host == "localhost" else host


def _public_host(station: Station) -> str:
    """What others are to say for this machine."""
    if station.advertise:
        return station.advertise
    if station.host not in WILDCARDS:
        return station.host
    for gateway in station.settings.cluster.gateway_urls:
        if address := _address_towards(urlsplit(gateway).hostname or ""):
            return address
    return socket.gethostname()


def _address_towards(host: str) -> str | None:
    """Which of our addresses this machine would use to reach that one. Nothing is sent to find out."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            found: str = probe.getsockname()[0]
    except OSError:
        return None
    return found
