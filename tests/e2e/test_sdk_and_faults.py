"""What the official SDK makes of engines that fail: the right class, our code, and its own retries."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import GatewayProcess, comes_true
from tests.support.upstream import Says, Upstream, upstream

BUSY = Says(503, b'{"error":{"message":"full, see 10.0.0.7","type":"overloaded_error"}}', {"retry-after": "1"})


@pytest.fixture(scope="module")
def engine_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def told(engine_port: int) -> Iterator[Upstream]:
    """An engine that answers as it is told."""
    with upstream(engine_port) as engine:
        yield engine


@pytest.fixture(scope="module")
def before(told: Upstream, engine_port: int, logs: Path) -> Iterator[GatewayProcess]:
    """The gateway before it."""
    url = f"http://127.0.0.1:{engine_port}"
    with running(GatewayProcess("before", free_port(), logs, ENGINE_URLS=url, PROBE_INTERVAL="0.2")) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def _anew(told: Upstream) -> None:
    told.says.clear()
    told.asked.clear()


def ask(gateway: GatewayProcess, retries: int = 0) -> str | None:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=retries, timeout=30) as client:
        done = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello?"}])
        return done.choices[0].message.content


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (Says(500, b'{"error":{"message":"Traceback at 0x7f0000"}}'), 502, "engine_failed"),
        (Says(200, b"<html>", {"content-type": "text/html"}), 502, "engine_nonsense"),
        (Says(401, b'{"error":{"message":"key sk-secret"}}'), 502, "engine_misconfigured"),
        (BUSY, 503, "engine_busy"),
    ],
    ids=["fails", "speaks nonsense", "refuses us", "is busy"],
)
def test_an_engine_that_does_not_answer_is_an_internal_server_error(
    before: GatewayProcess, told: Upstream, said: Says, status: int, code: str
) -> None:
    told.says[:] = [said] * 9
    with pytest.raises(openai.InternalServerError) as raised:
        ask(before)
    error = raised.value
    assert (error.status_code, error.code) == (status, code)
    assert error.request_id is not None
    for private in ("0x7f", "Traceback", "sk-secret", "10.0.0.7", "html"):
        assert private not in str(error.body)


def test_an_engines_refusal_is_a_bad_request_in_our_words(before: GatewayProcess, told: Upstream) -> None:
    told.says[:] = [Says(422, b'{"error":{"message":"/srv/model.py line 3","param":"min_p","code":"odd"}}')]
    with pytest.raises(openai.BadRequestError) as raised:
        ask(before)
    assert (raised.value.status_code, raised.value.param, raised.value.code) == (400, "min_p", "odd")
    assert "/srv" not in str(raised.value.body)
    assert len(told.asked) == 1


def test_what_the_engine_does_not_offer_is_501(before: GatewayProcess, told: Upstream) -> None:
    told.says[:] = [Says(404, b'{"detail":"Not Found"}')]
    with pytest.raises(openai.InternalServerError) as raised:
        ask(before)
    assert (raised.value.status_code, raised.value.code) == (501, "not_supported_by_engine")


@pytest.mark.alone
def test_the_sdk_waits_as_long_as_it_is_told_and_asks_again(before: GatewayProcess, told: Upstream) -> None:
    told.says[:] = [BUSY]
    began = time.monotonic()
    assert ask(before, retries=1) == "Hello."
    assert 1 <= time.monotonic() - began < 2
    assert len(told.asked) == 2


def test_the_sdk_gives_up_after_its_retries_with_what_was_said_last(before: GatewayProcess, told: Upstream) -> None:
    told.says[:] = [BUSY] * 9
    with pytest.raises(openai.InternalServerError) as raised:
        ask(before, retries=1)
    assert (raised.value.status_code, raised.value.response.headers["retry-after"]) == (503, "1")
    assert raised.value.response.headers["x-gllm-reason"] == "engine_busy"
    assert len(told.asked) == 2


def test_a_client_that_asks_again_is_served_as_soon_as_an_engine_is_there(logs: Path) -> None:
    port = free_port()
    early = GatewayProcess("early", free_port(), logs, ENGINE_URLS=f"http://127.0.0.1:{port}", PROBE_INTERVAL="0.2")
    with running(early, ready="/livez"):
        with pytest.raises(openai.InternalServerError) as raised:
            ask(early)
        assert (raised.value.status_code, raised.value.code) == (503, "no_replica")
        assert raised.value.response.headers["retry-after"] == "1"
        assert early.http.get("/health").json()["status"] == "starting"
        assert early.http.get("/readyz").status_code == 503
        answers: list[str | None] = []
        patient = threading.Thread(target=lambda: answers.append(ask(early, retries=3)))
        patient.start()
        assert comes_true(lambda: early.http.get("/health").json()["requests_total"] >= 2, 5)
        with upstream(port):
            patient.join(20)
    assert answers == ["Hello."]
