"""A gateway is told to stop at work: what runs may end, newcomers hear why they are not served, nobody is left."""

import json
import signal
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true
from tests.support.sockets import Raw, request

STREAM = {"prompt": "On and on", "ignore_eos": True, "stream": True}


def gateway_over(engine: Engine, logs: Path, name: str, **settings: str) -> GatewayProcess:
    return GatewayProcess(name, free_port(), logs, ENGINE_URLS=engine.url, **settings)


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], 2 * [signal.SIGHUP]], ids=["once", "by a closed terminal and its shell"]
)
def test_while_it_drains_newcomers_are_told_and_the_running_stream_ends_well(
    engine: Engine, logs: Path, signals: list[signal.Signals]
) -> None:
    with running(gateway_over(engine, logs, "drains")) as gateway, Raw(gateway.port, limit_s=30) as client:
        client.say(request("/v1/completions", {**STREAM, "max_tokens": 400})).until(b"data: ")
        for number in signals:
            gateway.signal(number)
            assert comes_true(lambda: gateway.http.get("/readyz").status_code == 503, 2)
        refused = httpx.post(f"{gateway.url}/v1/completions", json={"prompt": "x"}, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["connection"] == "close"
        assert gateway.http.get("/livez").status_code == 200
        assert b"data: [DONE]" in client.until(b"0\r\n\r\n")
        assert gateway.wait(limit_s=5) == 0


def test_what_is_not_done_when_the_grace_time_ends_is_told_so(engine: Engine, logs: Path) -> None:
    with running(gateway_over(engine, logs, "hurried", DRAIN_SECONDS="0.5")) as gateway:
        with Raw(gateway.port, limit_s=30) as client:
            client.say(request("/v1/completions", {**STREAM, "max_tokens": 1_900, "n": 2})).until(b"data: ")
            gateway.signal(signal.SIGTERM)
            rest = client.until(b"0\r\n\r\n")
        last = [line for line in rest.splitlines() if line.startswith(b"data: ")][-1]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "draining"
        assert b"[DONE]" not in rest
        assert gateway.wait(limit_s=5) == 0
    assert comes_true(lambda: engine.at_work() == 0, 2)
