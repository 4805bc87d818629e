"""One engine as a child process, for callers that have no event loop: the same keeper, another reader."""

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Event, Thread

from app.cluster.launchers.logfile import LogFile
from app.cluster.launchers.losses import ending
from app.cluster.launchers.output import Output, Told
from app.cluster.launchers.process import SLACK_S, kept
from gllm.service.command import Command

CHUNK_BYTES = 65_536
GRACE_S = 10.0
"""From SIGTERM to SIGKILL."""


class Child:
    """A thread of its own starts the process, reads all that it says, always, and buries it.

    That thread must live as long as the process: Linux takes the thread that started it for its parent, and the keeper
    ends its engine when the parent dies.
    """

    def __init__(self, command: Command, log: LogFile, told: Told, grace_s: float = GRACE_S) -> None:
        self._output = Output(log, told)
        self._grace_s = grace_s
        self._gone = Event()
        self._owner = os.getpid()
        born: Future[subprocess.Popen[bytes]] = Future()
        Thread(target=self._live, args=(command, log, born), name="gllm-engine", daemon=True).start()
        try:
            self._keeper = born.result()
        except BaseException:  # interrupted, perhaps: whoever is born now has nobody
            born.add_done_callback(_let_go)
            raise

    @property
    def is_ours(self) -> bool:
        """Not in a fork of the process that started it."""
        return os.getpid() == self._owner

    @property
    def ended(self) -> bool:
        return self._gone.is_set()

    def ends_within(self, seconds: float) -> bool:
        return self._gone.wait(seconds)

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        return ending(self._keeper.returncode if self._keeper.returncode >= 0 else 128 - self._keeper.returncode)

    @property
    def tail(self) -> list[str]:
        return list(self._output.tail)

    @property
    def buried_error(self) -> str:
        return self._output.buried_error

    def begin_to_stop(self) -> None:
        """It is told to end; nobody waits for it yet. In a word: forks of ours keep the pipe open."""
        if (held := self._keeper.stdin) and not held.closed:
            with suppress(OSError):  # it has ended by itself
                held.write(b"\n")
            held.close()

    def stop(self) -> None:
        """End it and wait until all of it is gone. Whoever interrupts this has no time: then there is no grace."""
        self.begin_to_stop()
        try:
            if not self.ends_within(self._grace_s + SLACK_S):
                self._kill()
        except BaseException:
            self._kill()
            raise

    def _kill(self) -> None:
        self._keeper.terminate()
        if not self.ends_within(SLACK_S):
            self._keeper.kill()
            self.ends_within(SLACK_S)

    def _live(self, command: Command, log: LogFile, born: "Future[subprocess.Popen[bytes]]") -> None:
        try:
            born.set_result(self._start(command.argv, dict(command.env)))
        except OSError as error:
            born.set_exception(error)
            self._gone.set()
            return
        try:
            self._read(born.result())
        finally:
            log.close()
            self._gone.set()

    def _start(self, argv: Sequence[str], env: dict[str, str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            kept(argv, self._grace_s),
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )

    def _read(self, keeper: "subprocess.Popen[bytes]") -> None:
        assert keeper.stdout is not None
        with keeper.stdout:
            while data := keeper.stdout.read(CHUNK_BYTES):
                self._output.take(data)
        self._output.end()
        keeper.wait()


def _let_go(born: "Future[subprocess.Popen[bytes]]") -> None:
    with suppress(OSError):  # it was never born
        if held := born.result().stdin:
            held.close()
