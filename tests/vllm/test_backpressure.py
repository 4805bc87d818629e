"""vLLM's own 503 (`--max-num-queued-reqs`) is backpressure: never a failure of the replica, and never a 502.

It knows no 429.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.processes import EngineSite, GatewayProcess, comes_true
from tests.support.sockets import Raw, request
from tests.support.vllm import MOST_AT_WORK, ON_VLLM, QUEUE_LIMIT, VllmFleet, knows

pytestmark = [*ON_VLLM]

ASKED = {"prompt": "Docker is", "max_tokens": 2}
COMPLETIONS = "/v1/completions"


@pytest.fixture(autouse=True)
def _limited(vllm: VllmFleet) -> None:
    if not knows(QUEUE_LIMIT):
        pytest.skip(f"vLLM {vllm.version} has no {QUEUE_LIMIT}: it never says that it is full")


@contextmanager
def full(engine: EngineSite) -> Iterator[None]:
    """As others may fill a replica, past this gateway: it takes nothing more within the block."""
    endless = {"model": "demo", "prompt": "On and on", "max_tokens": 1_900, "ignore_eos": True, "stream": True}
    with Raw(engine.port) as other:
        other.say(request(COMPLETIONS, endless | {"n": MOST_AT_WORK}))
        other.until(b"data: ")
        assert comes_true(lambda: engine.at_work() == MOST_AT_WORK, 5)
        assert engine.http.post(COMPLETIONS, json=ASKED).status_code == 503
        yield
    assert comes_true(lambda: engine.at_work() == 0, 2)


def errors(gateway: GatewayProcess) -> dict[str, float]:
    return {name: value for name, value in gateway.samples().items() if name.startswith("llm_engine_errors_total{")}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_where_one_replica_is_full_the_other_answers(vllm: VllmFleet, gateway: GatewayProcess, stream: bool) -> None:
    with full(vllm.engines["engine-0"]):
        for _ in range(12):
            answer = gateway.http.post(COMPLETIONS, json=ASKED | {"stream": stream})
            assert answer.status_code == 200
            assert answer.headers["x-gllm-replica"] == "engine-1"
        assert vllm.circuits_open() == 0
    assert gateway.http.get("/health").json()["replicas"] == {"engine-0": "ready", "engine-1": "ready"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_where_all_are_full_the_answer_is_503_and_says_when_to_come_again(
    vllm: VllmFleet, gateway: GatewayProcess, stream: bool
) -> None:
    before = errors(gateway)
    with ExitStack() as filled:
        for engine in vllm.engines.values():
            filled.enter_context(full(engine))
        for _ in range(12):  # more than the failures after which a replica would rest
            answer = gateway.http.post(COMPLETIONS, json=ASKED | {"stream": stream})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_busy")
            assert int(answer.headers["retry-after"]) >= 1
        assert vllm.circuits_open() == 0
        assert gateway.http.get("/readyz").status_code == 200
    grown = {name for name, value in errors(gateway).items() if value > before.get(name, 0)}
    assert grown == {'llm_engine_errors_total{error_type="EngineBusy"}'}
    assert gateway.http.post(COMPLETIONS, json=ASKED).status_code == 200
