"""A replica that is killed under load: nobody who has not had a first byte notices, and it comes back by itself."""

import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.processes import GatewayProcess, alive, below, comes_true
from tests.support.vllm import START_S, VllmFleet

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(START_S + 120, func_only=True)]

CLIENTS = 6
ASKED = {"prompt": "On and on", "max_tokens": 60, "ignore_eos": True}


class Asking:
    """Clients that ask one question after another until they are told to stop."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.outcomes: Counter[str] = Counter()
        self.stop = threading.Event()
        self._gateway = gateway

    def ask(self, number: int) -> None:
        with httpx.Client(base_url=self._gateway.url, trust_env=False, timeout=60) as client:
            while not self.stop.is_set():
                outcome = self._stream(client) if number % 2 else self._whole(client)
                self.outcomes[outcome] += 1

    def _whole(self, client: httpx.Client) -> str:
        answer = client.post("/v1/completions", json=ASKED)
        return "whole" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"

    def _stream(self, client: httpx.Client) -> str:
        with client.stream("POST", "/v1/completions", json=ASKED | {"stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        if answer.status_code != 200:
            return f"{answer.status_code} {lines}"
        if lines[-1] == "data: [DONE]":
            return "whole"
        assert '"error"' in lines[-1], lines[-1]
        return "cut off in its middle" if len(lines) > 1 else "cut off before its first byte"


def test_a_killed_replica_costs_nobody_an_answer_before_its_first_byte_and_comes_back(
    vllm: VllmFleet, gateway: GatewayProcess
) -> None:
    asking = Asking(gateway)
    with ThreadPoolExecutor(CLIENTS) as clients:
        done = [clients.submit(asking.ask, number) for number in range(CLIENTS)]
        try:
            assert comes_true(lambda: asking.outcomes["whole"] >= 2 * CLIENTS, 60)
            assert comes_true(lambda: vllm.engines["engine-0"].at_work() > 0, 10)
            dead = vllm.server_of("engine-0")
            family = {dead} | below(dead)
            os.kill(dead, signal.SIGKILL)
            assert comes_true(lambda: not vllm.all_ready(), 10)
            answered = asking.outcomes["whole"]
            assert comes_true(lambda: asking.outcomes["whole"] >= answered + 2 * CLIENTS, 60)
        finally:
            asking.stop.set()
        for each in done:
            each.result()
    assert set(asking.outcomes) <= {"whole", "cut off in its middle"}, asking.outcomes
    assert asking.outcomes["cut off in its middle"] <= CLIENTS // 2
    assert comes_true(lambda: not any(map(alive, family)), 10)
    assert vllm.circuits_open() == 0
    assert comes_true(vllm.all_ready, START_S, every_s=0.5)
    assert vllm.server_of("engine-0") not in family
    assert comes_true(lambda: "engine-0" in {replica_of(gateway) for _ in range(8)}, 20)


def replica_of(gateway: GatewayProcess) -> str:
    answer = gateway.http.post("/v1/completions", json={"prompt": "Docker is", "max_tokens": 1})
    return str(answer.headers["x-gllm-replica"])
