"""Several servers of one model, and one batch over all of them."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

from app.cluster.launchers.plan import Machine
from gllm.service.batched import Batched, Outputs, Question
from gllm.service.client import VLLMClient
from gllm.service.config import LLMConfig, ServeConfig, check_timeout
from gllm.service.errors import RequestFailed, ServerDied, Unreachable
from gllm.service.loop import run
from gllm.service.server import VLLMServer, start_all, stop_all

DEATH_S = 2.0

log = logging.getLogger(__name__)


class VLLMService(Batched):
    """One server for each GPU, started side by side, all or none; a batch is split over them and comes back in order.

    with VLLMService(LLMConfig("Qwen/Qwen3-8B"), ServeConfig(gpu_ids=[0, 1])) as service:
        texts = service.generate(prompts, {"max_tokens": 100})
    """

    def __init__(self, llm_config: LLMConfig, serve_config: ServeConfig) -> None:
        if not serve_config.gpu_ids or len(set(serve_config.gpu_ids)) != len(serve_config.gpu_ids):
            raise ValueError(f"gpu_ids={serve_config.gpu_ids}: name at least one, and none twice.")
        check_timeout("client_timeout", serve_config.client_timeout)
        self._serving = serve_config
        self._prepared = list(_servers(llm_config, serve_config))
        self.servers: list[VLLMServer] = []
        """Those that were started."""
        self.clients: list[VLLMClient] = []

    def start(self) -> None:
        """Returns when all are ready; otherwise none is left, and the error of the one that failed is raised."""
        if self.servers:
            raise RuntimeError("Service already started")
        start_all(self._prepared)
        try:
            self.clients = [self._client(server) for server in self._prepared]
        except BaseException:
            stop_all(self._prepared)
            raise
        self.servers = list(self._prepared)
        log.info("%d servers are ready: %s.", len(self.servers), ", ".join(each.base_url for each in self.clients))

    def shutdown(self) -> None:
        """Returns when nothing of them is left. Doing it again does nothing."""
        for client in self.clients:
            client.close()
        self.servers, self.clients = [], []
        stop_all(self._prepared)

    def is_running(self) -> bool:
        """At least one of the servers is alive."""
        return any(server.is_running() for server in self.servers)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    def _client(self, server: VLLMServer) -> VLLMClient:
        serving = self._serving
        return VLLMClient(server.host, server.port, serving.client_timeout, max_in_flight=serving.max_in_flight)

    def _outputs(self, questions: Sequence[Question]) -> Outputs:
        if not self.clients:
            raise RuntimeError("Service not started. Call .start() first.")
        if not questions:
            return []
        running = [client for server, client in self._pairs() if server.is_running()]
        try:
            return run(_spread(questions, running or self.clients))
        except Unreachable as error:
            raise self._why(error) from None

    def _pairs(self) -> Iterator[tuple[VLLMServer, VLLMClient]]:
        return zip(self.servers, self.clients, strict=True)

    def _why(self, error: Unreachable) -> RequestFailed:
        """A connection breaks a moment before its process is known to have ended."""
        (life,) = (server.life for server, client in self._pairs() if client.base_url == error.base_url)
        if life and life.ends_within(DEATH_S):
            return ServerDied(f"{life.name} ended by itself: {life.ending}.", life.tail, str(life.log))
        return error


def _servers(model: LLMConfig, serving: ServeConfig) -> Iterator[VLLMServer]:
    for place, gpu in enumerate(serving.gpu_ids):
        yield VLLMServer(
            model,
            [gpu],
            serving.host,
            None if serving.port is None else serving.port + place,
            serving.startup_timeout,
            serving.verbose,
            engine=serving.engine,
            threads=max(1, Machine.here().cores // len(serving.gpu_ids)),
        )


async def _spread(questions: Sequence[Question], clients: Sequence[VLLMClient]) -> Outputs:
    shares = [(client, share) for client, share in zip(clients, split(questions, len(clients)), strict=True) if share]
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(client.answered(share)) for client, share in shares]
    return [answer for each in asked for answer in each.result()]


def split(items: Sequence[Question], parts: int) -> list[Sequence[Question]]:
    """Runs of the same length, the first ones longer by one where it does not divide."""
    size, more = divmod(len(items), parts)
    starts = [place * size + min(place, more) for place in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(starts)]
