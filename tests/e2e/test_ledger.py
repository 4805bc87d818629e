"""What a gateway had counted when it was killed is counted, and nothing twice: with a real process under load."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import GatewayProcess, comes_true
from tests.support.redis_server import redis_server
from tests.support.upstream import upstream

INTERVAL_S = 0.3
TOKENS = 2
"""That the engine claims for each answer."""


@pytest.fixture
def engine() -> Iterator[str]:
    port = free_port()
    with upstream(port):
        yield f"http://127.0.0.1:{port}"


class Load:
    """Clients that ask until nobody answers any more, and when each answer was whole."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self.answered: list[float] = []
        self._url = url
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
        with httpx.Client(base_url=self._url, trust_env=False, timeout=10) as client:
            while True:
                try:
                    answer = client.post("/v1/chat/completions", json=body)
                except httpx.TransportError:
                    return
                assert answer.status_code == 200
                self.answered.append(time.monotonic())

    def ended(self) -> list[float]:
        for thread in self._threads:
            thread.join()
        return self.answered


def gateway(name: str, logs: Path, engine: str, **settings: str) -> GatewayProcess:
    flush = {"LEDGER_FLUSH_INTERVAL": str(INTERVAL_S)}
    return GatewayProcess(name, free_port(), logs, ENGINE_URLS=engine, **flush, **settings)


def usage(process: GatewayProcess) -> dict[str, Any]:
    page: dict[str, Any] = process.http.get("/admin/usage").raise_for_status().json()
    return page


def test_a_kill_loses_at_most_the_last_interval(engine: str, logs: Path) -> None:
    with running(gateway("killed", logs, engine)) as first:
        load = Load(first.url)
        assert comes_true(
            lambda: len(load.answered) > 100 and load.answered[-1] - load.answered[0] > 4 * INTERVAL_S, 60
        )
        killed_at = time.monotonic()
        first.kill()
        answered = load.ended()
    with running(gateway("killed", logs, engine)) as again:
        totals = usage(again)["totals"]
    early_enough = sum(1 for each in answered if each < killed_at - 2 * INTERVAL_S)
    assert early_enough > 20
    in_flight = 4
    assert early_enough <= totals["requests"] <= len(answered) + in_flight
    assert totals["completion_tokens"] == TOKENS * totals["requests"]


def test_a_stop_loses_nothing_and_the_file_tells_it_afterwards(engine: str, logs: Path) -> None:
    import subprocess

    with running(gateway("stopped", logs, engine)) as process:
        for _ in range(5):
            ask(process)
    command = [*GatewayProcess.SERVE[:-1], "usage", "--json", "--state-dir", str(logs / "stopped" / ".state")]
    page = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert page["totals"]["requests"] == 5


def test_two_gateways_count_together_and_a_killed_one_is_not_forgotten(engine: str, logs: Path, tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis:
        shared = {"REDIS_URL": redis.url, "REDIS_TIMEOUT": "1"}
        with (
            running(gateway("left", logs, engine, **shared)) as left,
            running(gateway("right", logs, engine, **shared)) as right,
        ):
            for _ in range(3):
                ask(left)
                ask(right)
            assert comes_true(lambda: usage(left)["totals"]["requests"] == 6, 10)
            assert usage(right)["scope"] == "cluster"
            redis.stop()
            ask(left)
            assert comes_true(lambda: usage(left)["scope"] == "gateway", 10)
            assert comes_true(lambda: usage(left)["totals"]["requests"] == 4, 10)
            left.kill()
            redis.start()
            assert comes_true(lambda: usage(right)["totals"]["requests"] == 3, 20), "of the killed one nothing is known"
            with running(gateway("left", logs, engine, **shared)):
                assert comes_true(lambda: usage(right)["totals"]["requests"] == 7, 20), "until it is back"


def ask(process: GatewayProcess) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    assert process.http.post("/v1/chat/completions", json=body).status_code == 200
