"""What the tests on real vLLM share: the fleet's gateway, and that nothing is left at work."""

from collections.abc import Iterator

import pytest

from tests.support.processes import GatewayProcess, comes_true
from tests.support.vllm import START_S, VllmFleet


@pytest.fixture
def gateway(vllm: VllmFleet) -> GatewayProcess:
    return vllm.gateway


@pytest.fixture(autouse=True)
def _well(vllm: VllmFleet) -> Iterator[None]:
    """Afterwards, whatever a test did, both replicas are there and not resting, and nothing is at work or in flight."""
    yield
    assert comes_true(vllm.all_ready, START_S, every_s=0.5)
    assert comes_true(lambda: (vllm.at_work(), vllm.gateway.in_flight()) == (0, 0), limit_s=5)
    assert vllm.circuits_open() == 0
