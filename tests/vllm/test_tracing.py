"""Real vLLM, as the gateway starts it, goes on with its traces: vLLM's own `llm_request` hangs below the attempt."""

import secrets

import pytest

from tests.support.collector import Seen
from tests.support.processes import GatewayProcess
from tests.support.sockets import Raw, request
from tests.support.vllm import ON_VLLM, VllmFleet

pytestmark = [*ON_VLLM]

CALLERS = "b" * 16
COMPLETIONS = "/v1/completions"
ASKED = {"prompt": "Docker is", "max_tokens": 5, "ignore_eos": True, "temperature": 0.5}
GATEWAYS = ["POST /v1/completions", "route", "text_completion demo"]


def traceparent(trace_id: str, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{CALLERS}-{flags}"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_one_trace_from_the_caller_into_vllm(vllm: VllmFleet, gateway: GatewayProcess, stream: bool) -> None:
    trace_id = secrets.token_hex(16)
    answer = gateway.http.post(COMPLETIONS, json=ASKED | {"stream": stream}, headers=traceparent(trace_id))
    assert answer.status_code == 200
    names = [*GATEWAYS, *(["stream"] if stream else []), "llm_request"]
    server, route, attempt, *streamed, engine = vllm.collecting.trace(trace_id, names)
    assert [span.parent_id for span in (server, route, attempt)] == [CALLERS, server.span_id, server.span_id]
    assert (engine.kind, engine.parent_id) == ("server", attempt.span_id)
    assert all(span.parent_id == attempt.span_id for span in streamed)
    assert (server.resource["service.name"], engine.resource["service.name"]) == ("gllm", "gllm-engine")
    assert (
        engine.resource["service.instance.id"] == answer.headers["x-gllm-replica"] == attempt.attributes["gllm.replica"]
    )
    assert attempt.attributes["gen_ai.usage.output_tokens"] == engine.attributes["gen_ai.usage.completion_tokens"] == 5
    assert f"http://{attempt.attributes['server.address']}:{attempt.attributes['server.port']}" == engine_url(
        vllm, engine
    )
    assert attempt.began <= engine.began


def engine_url(vllm: VllmFleet, engine: Seen) -> str:
    return vllm.engines[engine.resource["service.instance.id"]].url


def test_what_the_caller_does_not_keep_vllm_does_not_tell(vllm: VllmFleet, gateway: GatewayProcess) -> None:
    unkept, kept = secrets.token_hex(16), secrets.token_hex(16)
    for _ in range(4):  # both replicas have had some
        assert gateway.http.post(COMPLETIONS, json=ASKED, headers=traceparent(unkept, "00")).status_code == 200
    assert gateway.http.post(COMPLETIONS, json=ASKED, headers=traceparent(kept)).status_code == 200
    vllm.collecting.trace(kept, [*GATEWAYS, "llm_request"])
    vllm.collecting.trace(unkept, [])


def test_a_refusal_of_vllm_is_told_by_the_attempt(vllm: VllmFleet, gateway: GatewayProcess) -> None:
    """It makes no span of what it does not take in, nor of what its caller gives up."""
    trace_id = secrets.token_hex(16)
    asked = ASKED | {"prompt": "on and on " * 5_000}
    assert gateway.http.post(COMPLETIONS, json=asked, headers=traceparent(trace_id)).status_code == 400
    _, _, attempt = vllm.collecting.trace(trace_id, GATEWAYS)
    assert attempt.failed
    assert attempt.attributes["error.type"] == "ContextTooLong"


def test_a_hang_up_is_told_by_the_gateway(vllm: VllmFleet, gateway: GatewayProcess) -> None:
    trace_id = secrets.token_hex(16)
    endless = ASKED | {"model": "demo", "max_tokens": 1_900, "stream": True}
    with Raw(gateway.port) as client:
        client.say(request(COMPLETIONS, endless, f"traceparent: {traceparent(trace_id)['traceparent']}"))
        client.until(b"data: ")
    server, _, _, stream = vllm.collecting.trace(trace_id, [*GATEWAYS, "stream"])
    assert server.attributes["gllm.outcome"] == "client_gone"
    assert stream.attributes["gllm.events"] >= 1
