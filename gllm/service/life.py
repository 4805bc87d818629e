"""One life of a server, from its start to its end: a port, a folder with its log, a process, and giving them back."""

import logging
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx

from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.ports import NoPort, Ports
from gllm.service.address import url_of
from gllm.service.child import Child
from gllm.service.command import Command
from gllm.service.errors import StartFailed

FIRST_PORT = 8100
"""Where the search begins for those who name none."""

PROBE_S = 2.0

log = logging.getLogger(__name__)


class Life:
    def __init__(
        self,
        host: str,
        first_port: int | None,
        command: Callable[[int], Command],
        *,
        timeout_s: float | None,
        show: bool,
    ) -> None:
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._failed = self._closing = False
        with ExitStack() as stack:
            self.port = _port(host, first_port or FIRST_PORT, stack)
            self.name = f"The server at {host}:{self.port}"
            self._url = url_of(host, self.port)
            self._http = stack.enter_context(httpx.Client(trust_env=False, verify=False, timeout=PROBE_S))
            to_run = command(self.port)
            folder = Path(tempfile.mkdtemp(prefix="gllm-"))
            stack.callback(self._forget, folder)
            self.log = folder / f"server-{self.port}.log"
            self._child = self._started(to_run, _shown(self.port) if show else _unheard)
            stack.callback(self._child.stop)
            self._end = stack.pop_all()

    @property
    def running(self) -> bool:
        return not self._child.ended

    def ends_within(self, seconds: float) -> bool:
        return self._child.ends_within(seconds)

    @property
    def tail(self) -> list[str]:
        return self._child.tail

    @property
    def ending(self) -> str:
        return self._child.ending

    def is_ready(self) -> bool:
        """Raises `StartFailed` once it is known that it never will be."""
        if self._child.ended:
            of_what = f" Its first error: {self._child.buried_error}" if self._child.buried_error else ""
            raise self._failure(f"{self.name} did not start: {self.ending}.{of_what}")
        if self._timeout_s is not None and time.monotonic() - self._began > self._timeout_s:
            raise self._failure(f"{self.name} was not ready after {self._timeout_s:g} s (startup_timeout).")
        with suppress(httpx.HTTPError):
            return self._http.get(f"{self._url}/health").status_code == 200 and not self._child.ended
        return False

    def begin_to_close(self) -> None:
        """The log of one that ended by itself is kept, for whoever wants to know why."""
        if self._child.is_ours and not self._closing:
            self._closing = True
            self._failed = self._failed or self._child.ended
            self._child.begin_to_stop()

    def close(self) -> None:
        """Returns when nothing of it is left, but the log of a failure. A fork ends nothing of its parent's."""
        if self._child.is_ours:
            self.begin_to_close()
            self._end.close()

    def _started(self, command: Command, told: Callable[[str], None]) -> Child:
        try:
            return Child(command, LogFile(self.log), told)
        except OSError as error:
            raise StartFailed(f"{self.name} could not be started: {error.strerror}.") from error

    def _failure(self, message: str) -> StartFailed:
        self._failed = True
        return StartFailed(message, self.tail, str(self.log))

    def _forget(self, folder: Path) -> None:
        if not self._failed:
            shutil.rmtree(folder, ignore_errors=True)


def _port(host: str, first: int, stack: ExitStack) -> int:
    """The first that is free from there on, and ours until the stack is closed."""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError as error:
        raise StartFailed(f"host={host!r} is not an IPv4 address of this machine: {error.strerror}.") from None
    ports = Ports(host, first)
    stack.callback(ports.close)
    try:
        port = next(ports)
    except NoPort as error:
        raise StartFailed(f"From port {first} on: {error}.") from None
    if ports.skipped and first != FIRST_PORT:
        log.warning("Port %d is taken; taking %d.", first, port)
    return port


def _unheard(line: str) -> None:
    """It is in the log."""


def _shown(port: int) -> Callable[[str], None]:
    def show(line: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads any more, or stderr is closed; the engine must go on
            print(f"[{port}] {line}", file=sys.stderr, flush=True)

    return show
