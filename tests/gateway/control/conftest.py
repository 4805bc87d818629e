import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest

from app.cluster.control import Worker
from app.engines.base import Engine
from app.engines.scripted import Scripted
from app.errors import WorkerUnreachable
from tests.gateway.conftest import Build, House
from tests.support.asgi import JSON, Exchange
from tests.support.workers import ScriptedWorker

SETTINGS = {"HEARTBEAT_INTERVAL": 0.02, "WORKER_LEASE": 5, "SWAP_DRAIN_SECONDS": 1, "ENGINE_START_TIMEOUT": 5}


class Headquarters:
    """A gateway, and scripted workers at addresses that only it can reach."""

    def __init__(self, house: House, *workers: ScriptedWorker) -> None:
        self.house = house
        self.workers = {f"http://{each.name}:9000": each for each in workers}
        house.gateway.members.connect = self._connect
        house.gateway.supply.engine_at = self._engine_at

    def _connect(self, address: str) -> Worker:
        nobody = ScriptedWorker(address)
        nobody.away = WorkerUnreachable()
        return self.workers.get(address, nobody)

    def _engine_at(self, url: str) -> Engine:
        return next(each.engine for each in self.workers.values() if each.name == url.rpartition("/")[2])

    async def ask(
        self, method: str, path: str, body: Any = None, headers: tuple[tuple[bytes, bytes], ...] = (), **query: Any
    ) -> Exchange:
        return await self.exchange(method, path, body, headers, **query).run(self.house.gateway.app)

    def exchange(
        self, method: str, path: str, body: Any = None, headers: tuple[tuple[bytes, bytes], ...] = (), **query: Any
    ) -> Exchange:
        kind = [] if body is None else JSON
        exchange = Exchange(path, body if body is not None else b"", method=method, headers=[*kind, *headers])
        exchange.scope["query_string"] = urlencode(query).encode()
        return exchange

    async def all_announced(self) -> None:
        for address in self.workers:
            answer = await self.ask("POST", "/add_worker", {"address": address})
            assert answer.status == 200, answer.body


Open = Callable[..., Awaitable[Headquarters]]


@pytest.fixture
async def headquarters(build: Build) -> AsyncIterator[Open]:
    """`await headquarters(ScriptedWorker("w1", "demo"), …)`: they are known, and looked at."""
    async with AsyncExitStack() as stack:

        async def make(*workers: ScriptedWorker, settings: dict[str, Any] | None = None, **how: Any) -> Headquarters:
            house = await build(settings={**SETTINGS, **(settings or {})}, none=Scripted(), **how)
            house.gateway.fleet.remove("none")
            house.engines = {each.name: each.engine for each in workers}
            here = Headquarters(house, *workers)
            await stack.enter_async_context(_running(here))
            return here

        yield make


@asynccontextmanager
async def _running(here: Headquarters) -> AsyncIterator[None]:
    gateway = here.house.gateway
    async with asyncio.TaskGroup() as tasks:
        loops = [tasks.create_task(gateway.members.run()), tasks.create_task(gateway.swaps.run())]
        await asyncio.sleep(0)
        try:
            yield
        finally:
            for loop in loops:
                loop.cancel()
    for worker in here.workers.values():
        await worker.stop()
    for replica in list(gateway.fleet.replicas):
        gateway.fleet.remove(replica.name)
    here.house.engines.clear()


async def eventually(true: Callable[[], object], limit_s: float = 5.0) -> None:
    ends = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < ends, "it did not come true"
        await asyncio.sleep(0.002)
