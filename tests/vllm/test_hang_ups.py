"""A client that hangs up stops vLLM's work, as vLLM itself counts it."""

from contextlib import ExitStack

import pytest

from tests.support.processes import GatewayProcess, comes_true
from tests.support.sockets import Raw, request
from tests.support.vllm import ON_VLLM, VllmFleet

pytestmark = [*ON_VLLM]

ROUTES = {
    "/v1/completions": {"prompt": "On and on", "max_tokens": 1_900, "ignore_eos": True},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "Go on"}],
        "max_tokens": 1_900,
        "ignore_eos": True,
    },
}
STREAM = pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
SOON_S = 2.0


def idle(vllm: VllmFleet) -> bool:
    return vllm.at_work() == 0


@STREAM
@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("how", ["close", "reset"])
def test_hanging_up_ends_the_work(vllm: VllmFleet, gateway: GatewayProcess, stream: bool, path: str, how: str) -> None:
    with Raw(gateway.port) as client:
        client.say(request(path, ROUTES[path] | {"stream": stream}))
        if stream:
            client.until(b"data: ")
        assert comes_true(lambda: vllm.at_work() == 1, 5)
        if how == "reset":
            client.reset()
    assert comes_true(lambda: idle(vllm), SOON_S)
    assert comes_true(lambda: gateway.in_flight() == 0, SOON_S)


@STREAM
def test_hanging_up_ends_every_choice_of_a_request(vllm: VllmFleet, gateway: GatewayProcess, stream: bool) -> None:
    with Raw(gateway.port) as client:
        client.say(request("/v1/completions", ROUTES["/v1/completions"] | {"n": 8, "stream": stream}))
        assert comes_true(lambda: vllm.at_work() == 8, 5)
    assert comes_true(lambda: idle(vllm), SOON_S)


def test_who_hangs_up_disturbs_nobody_else(vllm: VllmFleet, gateway: GatewayProcess) -> None:
    staying = {"prompt": "On and on", "max_tokens": 150, "ignore_eos": True, "stream": True}
    with ExitStack() as stay:
        others = [stay.enter_context(Raw(gateway.port, limit_s=30)) for _ in range(4)]
        for other in others:
            other.say(request("/v1/completions", staying))
        with ExitStack() as leave:
            for number in range(6):
                leaving = leave.enter_context(Raw(gateway.port))
                leaving.say(request("/v1/completions", ROUTES["/v1/completions"] | {"stream": number % 2 == 0}))
            assert comes_true(lambda: vllm.at_work() >= 6, 5)
        for other in others:
            assert b"data: [DONE]" in other.until(b"0\r\n\r\n")


def test_work_that_outlives_its_deadline_ends_with_504(vllm: VllmFleet, gateway: GatewayProcess) -> None:
    answer = gateway.http.post(
        "/v1/completions", json=ROUTES["/v1/completions"], headers={"x-request-timeout-ms": "300"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert comes_true(lambda: idle(vllm), SOON_S)
