"""The processes that a scenario starts: real engines and a real gateway, each ended with its block."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from bench.engine import Counts, Shape
from bench.machine import ROOT
from bench.ports import free_port

GATEWAY = ("-c", "import sys; from gllm.cli import main; sys.exit(main())", "serve")
READY_S = 60.0
LOADED_S = 600.0
"""A large model, read from a slow disk."""
GONE_S = 15.0

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
"""Of our environment: no settings of a gateway that this machine runs, and no proxies."""


@dataclass(frozen=True)
class Process:
    port: int
    pid: int
    http: httpx.Client

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.http.get(path, headers=headers).raise_for_status()

    def samples(self) -> dict[str, float]:
        """Its metrics, by name and labels as they stand on the page."""
        lines = [line.rpartition(" ") for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}


class EngineProcess(Process):
    def counts(self) -> Counts:
        return msgspec.json.decode(self.get("/counts").content, type=Counts)


class GatewayProcess(Process):
    def health(self) -> dict[str, Any]:
        health: dict[str, Any] = self.get("/health").json()
        return health


P = TypeVar("P", bound=Process)


class Processes:
    """As a block. What they say goes to a folder that is gone afterwards."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gllm-bench-")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def engine(self, shape: Shape) -> EngineProcess:
        port = free_port()
        argv = ["-m", "bench.engine", str(port), *shape.arguments()]
        return self._stack.enter_context(_started(EngineProcess, argv, port, self._folder / f"engine-{port}", {}))

    def gateway(self, engine: EngineProcess, settings: Mapping[str, str], *, key: str | None = None) -> GatewayProcess:
        """`key` is what we show it when we look at it."""
        port = free_port()
        environment = {
            "PORT": str(port),
            "ENGINE_URLS": f"http://127.0.0.1:{engine.port}",
            "LOG_FORMAT": "json",
            **settings,
        }
        folder = self._folder / f"gateway-{port}"
        return self._stack.enter_context(_started(GatewayProcess, [*GATEWAY], port, folder, environment, key))

    def serving(self, settings: Mapping[str, str]) -> GatewayProcess:
        """A gateway that starts its engines itself. They are ready."""
        port = free_port()
        environment = {"PORT": str(port), "LOG_FORMAT": "json", **settings}
        folder = self._folder / f"serving-{port}"
        return self._stack.enter_context(
            _started(GatewayProcess, [*GATEWAY], port, folder, environment, ready="/readyz", ready_s=LOADED_S)
        )

    def file(self, name: str, text: str) -> Path:
        path = self._folder / name
        path.write_text(text)
        return path


@contextmanager
def _started(
    kind: type[P],
    argv: list[str],
    port: int,
    folder: Path,
    environment: Mapping[str, str],
    key: str | None = None,
    ready: str = "/health",
    ready_s: float = READY_S,
) -> Iterator[P]:
    folder.mkdir()
    log = folder / "log"
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            env={**kept, "PYTHONPATH": str(ROOT), **environment},
        )
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False, timeout=30) as http:
            _await_ready(process, http, log, ready, ready_s)
            yield kind(port, process.pid, http)
    finally:
        _end(process)


def _await_ready(process: subprocess.Popen[bytes], http: httpx.Client, log: Path, path: str, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with suppress(httpx.TransportError):
            if http.get(path).status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} does not answer:\n{log.read_text(errors='replace')[-2_000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GONE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
