"""What the tests on real vLLM share: the fleet's gateway, and that nothing is left at work."""

from collections.abc import Iterator

import pytest

from tests.support.processes import GatewayProcess, comes_true
from tests.support.vllm import VllmFleet


@pytest.fixture
def gateway(vllm: VllmFleet) -> GatewayProcess:
    return vllm.gateway


@pytest.fixture(autouse=True)
def _well(vllm: VllmFleet) -> Iterator[None]:
    """Afterwards, whatever a test did: nothing is at work or in flight, and no replica is being given a pause."""
    yield
    assert comes_true(lambda: (vllm.at_work(), vllm.gateway.in_flight()) == (0, 0), limit_s=5)
    assert vllm.circuits_open() == 0
