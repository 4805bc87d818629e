"""Engines that are killed, frozen and brought back, behind a gateway that has two of them."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true

pytestmark = pytest.mark.alone
FIRST_BYTE_S = 1.5


class Victim:
    """An engine to be killed, and started again where it was."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._port = free_port()
        self.engine = self._started()

    def _started(self) -> Engine:
        return Engine("victim", self._port, self._logs)

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self._port}"

    def back(self) -> None:
        if not self.engine.running:
            self.engine.http.close()
            self.engine = self._started()
        self.engine.await_ready()


@pytest.fixture(scope="module")
def victim(logs: Path) -> Iterator[Victim]:
    victim = Victim(logs)
    try:
        yield victim
    finally:
        victim.engine.end()


@pytest.fixture(scope="module")
def pair(victim: Victim, engine: Engine, logs: Path) -> Iterator[GatewayProcess]:
    """A gateway over the victim and the session's engine."""
    victim.back()
    urls = f"{victim.engine.url},{engine.url}"
    settings = {"ENGINE_URLS": urls, "FIRST_BYTE_TIMEOUT": str(FIRST_BYTE_S), "PROBE_INTERVAL": "0.2"}
    with running(GatewayProcess("pair", free_port(), logs, **settings)) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def _both_ready(pair: GatewayProcess, victim: Victim) -> None:
    victim.back()
    assert comes_true(lambda: set(replicas(pair).values()) == {"ready"}, 10)


def replicas(gateway: GatewayProcess) -> dict[str, str]:
    states: dict[str, str] = gateway.http.get("/health").json()["replicas"]
    return states


def ask(gateway: GatewayProcess, max_tokens: int = 4, **more: Any) -> httpx.Response:
    asked = {"prompt": "A container is", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **more}
    return gateway.http.post("/v1/completions", json=asked)


def in_parallel(count: int, work: Callable[[], httpx.Response], meanwhile: Callable[[], None]) -> list[httpx.Response]:
    """`work` so many times at once, and something done to them."""
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join(60)
    return answers


def text_of(answer: httpx.Response) -> str:
    if answer.headers["content-type"] == "application/json":
        text: str = answer.json()["choices"][0]["text"]
        return text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return "".join(each["text"] for event in events[:-1] for each in json.loads(event)["choices"])


def test_a_frozen_engine_is_given_up_after_the_first_byte_timeout_and_another_answers(
    pair: GatewayProcess, victim: Victim, engine: Engine
) -> None:
    right = text_of(ask(pair))
    victim.engine.signal(signal.SIGSTOP)
    began = time.monotonic()
    answers = in_parallel(2, lambda: ask(pair, stream=True), lambda: None)
    assert FIRST_BYTE_S < time.monotonic() - began < FIRST_BYTE_S + 1
    assert [answer.status_code for answer in answers] == [200, 200]
    assert sorted(answer.headers["x-gllm-attempts"] for answer in answers) == ["1", "2"]
    assert {answer.headers["x-gllm-replica"] for answer in answers} == {engine.url.removeprefix("http://")}
    assert [text_of(answer) for answer in answers] == [right, right]
    assert pair.samples()['llm_engine_errors_total{error_type="EngineSilent"}'] >= 1

    victim.engine.signal(signal.SIGCONT)
    assert comes_true(lambda: ask(pair).headers["x-gllm-replica"] == victim.name, 10)
    assert comes_true(lambda: victim.engine.at_work() == 0, 1), "what it missed was not given up"


def test_a_long_answer_that_is_not_streamed_is_no_late_first_byte(pair: GatewayProcess) -> None:
    began = time.monotonic()
    ask(pair, max_tokens=100)
    long_enough = int(100 * 2 * FIRST_BYTE_S / (time.monotonic() - began))
    began = time.monotonic()
    answer = ask(pair, max_tokens=min(1_900, long_enough))
    assert time.monotonic() - began > FIRST_BYTE_S, "too fast to prove anything"
    assert (answer.status_code, answer.headers["x-gllm-attempts"]) == (200, "1")


def test_an_engine_killed_before_its_first_byte_costs_nobody_an_answer(
    pair: GatewayProcess, victim: Victim, engine: Engine
) -> None:
    right = text_of(ask(pair))
    victim.engine.signal(signal.SIGSTOP)

    def kill() -> None:
        assert comes_true(lambda: pair.http.get("/health").json()["requests_active"] >= 1, 5)
        time.sleep(0.2)
        victim.engine.kill()

    streamed = iter((True, True, False, False))
    answers = in_parallel(4, lambda: ask(pair, stream=next(streamed)), kill)
    assert [answer.status_code for answer in answers] == [200] * 4
    assert sorted(answer.headers["x-gllm-attempts"] for answer in answers) == ["1", "1", "2", "2"]
    assert [text_of(answer) for answer in answers] == [right] * 4
    assert {answer.headers["x-gllm-replica"] for answer in answers} == {engine.url.removeprefix("http://")}

    later = [ask(pair) for _ in range(6)]
    assert [each.status_code for each in later] == [200] * 6
    attempts = [each.headers["x-gllm-attempts"] for each in later]
    assert attempts.count("1") >= 5, "whoever is sent there first finds it gone, and nobody after that"
    assert replicas(pair)[victim.name] == "failing"
    victim.back()
    assert comes_true(lambda: ask(pair).headers["x-gllm-replica"] == victim.name, 10)


def test_an_engine_killed_in_mid_stream_is_one_error_event_and_no_end(pair: GatewayProcess, victim: Victim) -> None:
    interrupted = pair.samples()['gllm_request_outcomes_total{model="demo",outcome="interrupted"}']
    right = text_of(ask(pair, max_tokens=300))
    bodies: dict[str, bytes] = {}

    def stream() -> None:
        asked = {"prompt": "A container is", "max_tokens": 300, "temperature": 0, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{pair.url}/v1/completions", json=asked, trust_env=False, timeout=30) as answer:
            replica = answer.headers["x-gllm-replica"]
            for part in answer.iter_raw():
                bodies[replica] = bodies.get(replica, b"") + part

    threads = [threading.Thread(target=stream) for _ in range(2)]
    with OpenAI(base_url=f"{pair.url}/v1", api_key="unused", max_retries=2) as client:
        client.models.list()  # what a first call imports may take as long as the streams
        for thread in threads:
            thread.start()
        sdk_streams = [
            client.completions.with_raw_response.create(
                model="demo", prompt="A container is", max_tokens=300, stream=True, extra_body={"ignore_eos": True}
            )
            for _ in range(2)
        ]
        assert comes_true(lambda: len(bodies) == 2 and min(map(len, bodies.values())) > 2_000, 10)
        victim.engine.kill()
        (broken,) = (each for each in sdk_streams if each.headers["x-gllm-replica"] == victim.name)
        with pytest.raises(openai.APIError) as raised:
            for _ in broken.parse():
                pass
        assert raised.value.code == "engine_interrupted"
        assert not isinstance(raised.value, openai.APIStatusError)
    for thread in threads:
        thread.join(30)

    *events, last, rest = bodies.pop(victim.name).decode().split("\n\n")
    assert rest == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_interrupted"
    said = "".join(json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events)
    assert said
    assert right.startswith(said)
    (whole,) = bodies.values()
    assert whole.endswith(b"data: [DONE]\n\n")
    assert b'"error"' not in whole
    assert pair.samples()['gllm_request_outcomes_total{model="demo",outcome="interrupted"}'] == interrupted + 2
    assert pair.in_flight() == 0
