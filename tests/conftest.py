"""What every test may use."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import interrupts
from tests.support.redis_server import redis_server
from tests.support.vllm import VllmFleet, vllm_fleet


def pytest_configure(config: pytest.Config) -> None:
    interrupts.heed(config)


def pytest_runtest_setup(item: pytest.Item) -> None:
    interrupts.heed(item.config)  # again: an event loop that had handled signals leaves them to the system


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.support.shares import Shares

    config.pluginmanager.register(interrupts.Told())
    return Shares(config, log)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis, empty at first, for the whole run."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmFleet]:
    """Two replicas of real vLLM behind a gateway, for the whole run: what a test breaks it mends."""
    with vllm_fleet(tmp_path_factory.mktemp("vllm")) as fleet:
        yield fleet
