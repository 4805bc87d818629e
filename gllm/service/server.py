"""One engine, started from Python and gone when Python is."""

import logging
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from gllm.service.command import Command, check, command
from gllm.service.config import STARTUP_TIMEOUT_S, EngineType, LLMConfig
from gllm.service.life import Life

POLL_S = 0.1

log = logging.getLogger(__name__)


class VLLMServer:
    """`vllm serve` (or our Transformers server), on the GPUs named, speaking the OpenAI format on `host:port`.

        with VLLMServer(LLMConfig("Qwen/Qwen3-8B"), gpu_ids=[0]) as server:
            ...

    Several GPUs are used together, by tensor parallelism; none means the CPU. What the engine says goes to a log file,
    which stays only if it failed. It ends with `shutdown()`, with the block, with this object, with the interpreter,
    and with the process, however that dies.
    """

    def __init__(
        self,
        llm_config: LLMConfig,
        gpu_ids: list[int],
        host: str = "127.0.0.1",
        port: int | None = None,
        startup_timeout: float | None = STARTUP_TIMEOUT_S,
        verbose: bool = False,
        *,
        engine: EngineType = "vllm",
        threads: int | None = None,
    ) -> None:
        """`port`: the first one tried, and the next when it is taken; None tries from 8100 on.

        `startup_timeout`: seconds until it must be ready, 180 if nothing is said, as in `ServeConfig` (gserve had 15
        here, which loads hardly any model); None waits as long as it takes. `threads`: for an engine on the CPU.
        """
        check(llm_config, engine)
        self.llm_config = llm_config
        self.gpu_ids = list(gpu_ids)
        self.host = host
        self.startup_timeout = startup_timeout
        self.verbose = verbose
        self.engine: EngineType = engine
        self._port = port
        self._threads = threads
        self._life: Life | None = None
        self._close: weakref.finalize[[], VLLMServer] | None = None

    @property
    def port(self) -> int:
        """The one that it has; before its start the one asked for, 0 standing for any."""
        return self._life.port if self._life else self._port or 0

    @property
    def life(self) -> Life | None:
        """From `start` to `shutdown`."""
        return self._life

    def start(self) -> None:
        """Returns when it is ready; raises `StartFailed`, a RuntimeError, if it cannot become so."""
        start_all([self])

    def shutdown(self) -> None:
        """Returns when nothing of it is left. Doing it again does nothing."""
        if self._close is not None:
            self._close()
        self._life = self._close = None

    def is_running(self) -> bool:
        return self._life is not None and self._life.running

    def begin(self) -> Life:
        """Started, but not ready yet."""
        life = Life(self.host, self._port, self._command, timeout_s=self.startup_timeout, show=self.verbose)
        self._close = weakref.finalize(self, life.close)
        self._life = life
        log.info("Starting %s at %s:%d.", self.llm_config.model_name, self.host, life.port)
        return life

    def _command(self, port: int) -> Command:
        return command(self.llm_config, self.engine, self.gpu_ids, self.host, port, self._threads)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()


def start_all(servers: Sequence[VLLMServer]) -> None:
    """Side by side, all or none: the first that fails ends the others, and its error is raised."""
    if any(server.is_running() for server in servers):
        raise RuntimeError("vLLM server is already running.")
    try:
        loading = []
        for server in servers:
            server.shutdown()  # what an engine that died has left
            loading.append(server.begin())
        while loading := [life for life in loading if not life.is_ready()]:
            time.sleep(POLL_S)
    except BaseException:
        stop_all(servers)
        raise


def stop_all(servers: Sequence[VLLMServer]) -> None:
    """Side by side, too: each is told to end before the first is waited for."""
    for server in servers:
        if server.life:
            server.life.begin_to_close()
    for server in servers:
        server.shutdown()
