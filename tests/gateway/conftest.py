import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.clock import Clock
from app.engines.base import Engine
from app.engines.scripted import Scripted
from app.gateway.app import Gateway
from app.gateway.siblings import Family
from app.reliability.stores import embedded
from app.settings import Settings
from tests.support.asgi import Exchange
from tests.support.inline import Inline
from tests.support.recorder import Recorder

CHAT = "/v1/chat/completions"


def asking(**fields: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], **fields}


class House:
    """A gateway over scripted engines, and everything a test looks at afterwards."""

    def __init__(self, gateway: Gateway, recorder: Recorder, engines: dict[str, Scripted]) -> None:
        self.gateway = gateway
        self.recorder = recorder
        self.engines = engines

    @property
    def engine(self) -> Scripted:
        return next(iter(self.engines.values()))

    async def post(self, body: bytes | dict[str, Any], path: str = CHAT, **how: Any) -> Exchange:
        return await Exchange(path, body, **how).run(self.gateway.app)

    async def get(self, path: str, method: str = "GET", **how: Any) -> Exchange:
        return await Exchange(path, method=method, **{"headers": [], **how}).run(self.gateway.app)

    def assert_all_given_back(self) -> None:
        assert self.recorder.in_progress == 0
        assert self.gateway.admission.inside == 0
        assert self.gateway.admission.waiting == 0
        assert self.gateway.storage.quota.running == 0
        assert len(self.gateway.watch) == 0
        assert len(self.gateway.replays) == 0
        assert self.gateway.observers.journal is None or all(
            each.ended for each in self.gateway.observers.journal.newest()
        )
        assert [engine.running for engine in self.engines.values()] == [0] * len(self.engines)
        assert [replica.running for replica in self.gateway.fleet.replicas] == [0] * len(self.engines)
        assert [replica.load for replica in self.gateway.fleet.replicas] == [0] * len(self.engines)


Build = Callable[..., Awaitable[House]]


@pytest.fixture
async def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Build]:
    """`await build(a=Scripted(…), b=…, settings={"MAX_CHOICES": 2})`; every house must be empty in the end.

    Calls go to the replicas in turn as long as these are idle: no dice.
    """
    monkeypatch.setattr(embedded, "ThreadPoolExecutor", Inline)
    async with AsyncExitStack() as stack:

        async def make(
            settings: dict[str, Any] | None = None,
            clock: Clock = time.monotonic,
            family: Family | None = None,
            **engines: Scripted,
        ) -> House:
            recorder = Recorder()
            engines = engines or {"only": Scripted()}
            by_name: dict[str, Engine] = dict(engines)
            for engine in engines.values():
                engine.clock = clock
            fixed = {"LOG_LEVEL": "error", "STATE_DIR": tmp_path / "state", "ROUTING_POLICY": "least_load"}
            flags = {**fixed, **(settings or {})}
            loaded = Settings.load(env={}, env_file=None, **flags)
            gateway = Gateway(loaded, by_name, clock=clock, backends=[recorder], family=family)
            stack.push_async_callback(gateway.siblings.aclose)
            await gateway.prober.round()
            house = House(gateway, recorder, engines)
            stack.callback(gateway.observers.log.close)
            stack.push_async_callback(gateway.storage.answers.aclose)
            await stack.enter_async_context(gateway.replays.running(drain_s=0))
            stack.push_async_callback(gateway.storage.books.aclose)
            stack.callback(house.assert_all_given_back)
            return house

        yield make


@pytest.fixture
async def house(build: Build) -> House:
    return await build()
