"""One Redis for all worlds of a run."""

from collections.abc import Iterator

import pytest

from tests.simulation.memory import at_hand


@pytest.fixture(scope="session", autouse=True)
def _redis_at_hand() -> Iterator[None]:
    with at_hand():
        yield
