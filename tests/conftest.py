"""What every test may use."""

from collections.abc import Iterator

import pytest

from tests.support.redis_server import redis_server
from tests.support.vllm import VllmFleet, vllm_fleet


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
