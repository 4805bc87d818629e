"""A gateway with REDIS_URL: it says how the store is, and lives without it."""

import asyncio
from pathlib import Path

import httpx
import pytest

from app.gateway.app import Gateway
from app.settings import BadSetting, Settings
from app.telemetry.base import StoreChanged
from tests.gateway.conftest import CHAT, Build, asking
from tests.support.recorder import Recorder
from tests.support.redis_server import redis_server
from tests.support.server import serving


async def test_the_store_goes_and_returns_and_requests_are_answered_all_the_while(build: Build, tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        settings = {"REDIS_URL": redis.url, "REDIS_TIMEOUT": 1, "STATE_DIR": tmp_path}
        house = await build(settings=settings)
        async with serving(house.gateway) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:

            async def gauge() -> str:
                page = (await client.get("/metrics")).text
                return next(line for line in page.splitlines() if line.startswith("gllm_shared_store_up"))

            await known(house.recorder, [True])
            assert await gauge() == "gllm_shared_store_up 1.0"
            await asyncio.to_thread(redis.stop)
            await known(house.recorder, [True, False])
            assert await gauge() == "gllm_shared_store_up 0.0"
            assert (await client.post(CHAT, json=asking())).status_code == 200
            await asyncio.to_thread(redis.start)
            await known(house.recorder, [True, False, True])
            assert (await client.get("/health")).json()["status"] == "healthy"


async def known(recorder: Recorder, states: list[bool]) -> None:
    async with asyncio.timeout(20):
        while [event.available for event in recorder.events if isinstance(event, StoreChanged)] != states:
            await asyncio.sleep(0.01)


def test_a_store_that_can_never_be_used_stops_the_start() -> None:
    settings = Settings.load(env={}, env_file=None, REDIS_URL="localhost", ENGINE_URLS="http://127.0.0.1:9")
    with pytest.raises(BadSetting, match="REDIS_URL must be a URL"):
        Gateway(settings)
