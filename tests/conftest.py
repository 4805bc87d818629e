"""What every test may use."""

from collections.abc import Iterator

import pytest

from tests.support.redis_server import redis_server


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis, empty at first, for the whole run."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url
