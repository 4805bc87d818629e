"""What every test may use."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.redis_server import redis_server

# Two busy cores are slow at times; what is slow always is seen by people.
settings.register_profile("gllm", deadline=None)
settings.load_profile("gllm")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis, empty at first, for the whole run."""
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url
