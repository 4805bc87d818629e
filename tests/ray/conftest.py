"""One Ray cluster for all tests here: a head without GPUs, and no other nodes at first."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.ray.nodes import LOOPBACK_ONLY, Nodes, nodes


@pytest.fixture(scope="session")
def cluster() -> Iterator[Nodes]:
    if not find_spec("ray"):
        pytest.skip("Ray is not installed here: make test-ray")
    with pytest.MonkeyPatch.context() as environment, nodes() as running:
        for name, value in LOOPBACK_ONLY.items():
            environment.setenv(name, value)
        yield running
