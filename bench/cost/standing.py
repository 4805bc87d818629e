"""A gateway that stands and waits for its turn: its processes are frozen meanwhile, so that they disturb no other's."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.cost.cores import pinned
from bench.cost.load import Load, fire, write_requests
from bench.open_loop import chat

KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
"""Of our environment: no settings of a gateway that this machine runs, and no proxies."""

READY_S = 90.0
GONE_S = 15.0
SETTLED_S = 0.3

WORDS = 200
"""Of a prompt: about one KB."""


class Ended(Exception):
    """The text says who, and the last that it wrote."""


@dataclass(frozen=True)
class Start:
    """How something is started that listens on `port`."""

    command: Sequence[str]
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    """Names and texts of what has to lie in the folder that it runs in."""
    keys: Sequence[str] = ()
    """What callers have to show: in turn, if there are several."""
    settle_s: float = SETTLED_S
    metrics_port: int | None = None
    idle_most: int = 1_000_000
    """Streams at once that it can be expected to open within a few seconds."""


@dataclass
class Standing:
    name: str
    port: int
    folder: Path
    keys: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    """None: nobody is between the load and the engine."""
    settle_s: float = SETTLED_S
    metrics_port: int | None = None
    idle_most: int = 1_000_000

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def requests(self, tokens: int, *, stream: bool = False, words: int = WORDS) -> Path:
        """A file of them, for the load generator."""
        path = self.folder / f"requests-{tokens}-{stream}-{words}"
        if not path.exists():
            keys: Sequence[str | None] = self.keys or (None,)
            each = [chat(words, tokens, stream=stream, key=key) for key in keys]
            write_requests(path, each)
        return path

    @contextmanager
    def awake(self) -> Iterator[None]:
        self._signal(signal.SIGCONT)
        time.sleep(self.settle_s)
        if self.process is not None and self.process.poll() is not None:
            raise Ended(f"{self.name} has ended with {self.process.returncode}:\n{self.said()}")
        try:
            yield
        finally:
            self.rest()

    def said(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2_000:]

    def rest(self) -> None:
        self._signal(signal.SIGSTOP)
        if self.pid is not None:
            os.truncate(self.folder / "log", 0)  # a line a request, for minutes

    def _signal(self, number: int) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)


@contextmanager
def started(name: str, start: Start, core: int, folder: Path, load_core: int) -> Iterator[Standing]:
    """Frozen, once it has answered a request."""
    folder.mkdir()
    for file, text in start.files.items():
        (folder / file).write_text(text)
    log = folder / "log"
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    with log.open("ab") as out:
        process = subprocess.Popen(
            pinned(core, *start.command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            env={**kept, **start.environment},
            start_new_session=True,
        )
    standing = Standing(
        name, start.port, folder, start.keys, process, start.settle_s, start.metrics_port, start.idle_most
    )
    try:
        _await_answer(standing, load_core)
        standing.rest()
        yield standing
    finally:
        _end(process)


def _await_answer(standing: Standing, load_core: int) -> None:
    process = standing.process
    assert process is not None
    until = time.monotonic() + READY_S
    asked = standing.requests(1)
    while time.monotonic() < until and process.poll() is None:
        if fire(Load(each=1, patience=5), standing.port, asked, load_core).answered:
            return
        time.sleep(0.2)
    raise Ended(f"{standing.name} does not answer:\n{standing.said()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGCONT, signal.SIGTERM):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    with suppress(subprocess.TimeoutExpired):
        process.wait(GONE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
