"""An engine that is killed in mid-stream, behind a gateway that has another one and may go on there."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true
from tests.support.reading import QUESTIONS, WITH_USAGE, Reading, asking, kill_in_mid_stream, undisturbed


class Pair:
    """Two engines and the gateway before them. One that was killed comes back."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        ports = [free_port() for _ in range(2)]
        self.engines = {f"127.0.0.1:{port}": Engine(f"twin-{port}", port, logs) for port in ports}
        for engine in self.engines.values():
            engine.await_ready()
        urls = ",".join(engine.url for engine in self.engines.values())
        settings = {"ENGINE_URLS": urls, "EXACT_USAGE": "true", "PROBE_INTERVAL": "0.2", "STATE_DIR": "state"}
        self.gateway = GatewayProcess("takeover", free_port(), logs, **settings)

    def all_ready(self) -> bool:
        states = self.gateway.http.get("/health").json()["replicas"]
        return bool(set(states.values()) == {"ready"})

    def back(self) -> None:
        for name, engine in self.engines.items():
            if not engine.running:
                engine.http.close()
                self.engines[name] = Engine(engine.name, engine.port, self._logs)
            self.engines[name].await_ready()
        assert comes_true(self.all_ready, 10)

    def taken_over(self) -> int:
        return int(self.gateway.sum_of("gllm_streams_taken_over_total"))

    def told_of(self, readings: list[Reading]) -> list[dict[str, Any]]:
        """The log lines of these requests, as far as they are written."""
        lines = [json.loads(line) for line in self.gateway.log.read_text().splitlines() if line.startswith("{")]
        ids = {each.id for each in readings}
        return [line for line in lines if line["event"] == "request" and line["request_id"] in ids]

    def killed(self, readings: list[Reading]) -> list[Reading]:
        """The streams of one engine that is killed in their middle."""
        victims = {engine.pid: engine for engine in self.engines.values()}
        return kill_in_mid_stream(readings, lambda name: self.engines[name].pid, lambda pid: victims[pid].kill())

    def close(self) -> None:
        for server in (*self.engines.values(), self.gateway):
            server.end()


@pytest.fixture(scope="module")
def twins(logs: Path) -> Iterator[Pair]:
    pair = Pair(logs)
    try:
        with running(pair.gateway):
            yield pair
    finally:
        pair.close()


@pytest.fixture(scope="module")
def right(twins: Pair) -> dict[str, Any]:
    return undisturbed(twins.gateway)


@pytest.fixture
def pair(twins: Pair) -> Pair:
    twins.back()
    return twins


def test_every_stream_of_a_killed_engine_ends_as_if_nothing_had_happened(pair: Pair, right: dict[str, Any]) -> None:
    taken_over = pair.taken_over()
    readings = [Reading(pair.gateway, question) for question in QUESTIONS]
    for each in readings:
        each.start()
    lost = pair.killed(readings)
    assert lost
    for each in readings:
        assert each.is_one_answer(), each.lines
        assert each.told == right[each.question]
    assert pair.taken_over() == taken_over + len(lost)
    assert pair.gateway.in_flight() == 0
    assert comes_true(lambda: len(pair.told_of(readings)) == len(readings), 5)
    lines = pair.told_of(readings)
    assert {line["outcome"] for line in lines} == {"ok"}
    assert {line["request_id"] for line in lines if line.get("taken_over") == 1} == {each.id for each in lost}
    assert sorted(line["completion_tokens"] for line in lines) == sorted(
        counts["completion_tokens"] for _, _, counts in right.values()
    ), "and charged once"
    (survivor,) = (engine for engine in pair.engines.values() if engine.running)
    assert survivor.at_work() == 0


def test_a_keyed_stream_is_kept_as_one_answer(pair: Pair, right: dict[str, Any]) -> None:
    question = QUESTIONS[0]
    first = Reading(pair.gateway, question, key="once")
    first.start()
    assert pair.killed([first]) == [first]
    assert first.is_one_answer()
    assert first.told == right[question]
    again = Reading(pair.gateway, question, key="once")
    again.run()
    assert again.lines == first.lines
    numbers = [int(line.removeprefix("id: ")) for line in first.lines if line.startswith("id: ")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_official_sdk_reads_on(pair: Pair, right: dict[str, Any]) -> None:
    question = QUESTIONS[1]
    text, finish, counts = right[question]
    taken_over = pair.taken_over()
    with OpenAI(base_url=f"{pair.gateway.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        raw = client.chat.completions.with_raw_response.create(**asking(question, **WITH_USAGE))
        chunks = iter(raw.parse())
        read = list(itertools.islice(chunks, 10))
        pair.engines[raw.headers["x-gllm-replica"]].kill()
        read += chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in read if chunk.choices) == text
    assert len({chunk.id for chunk in read}) == 1
    assert [chunk.choices[0].finish_reason for chunk in read if chunk.choices][-1] == finish
    assert read[-1].usage is not None
    assert read[-1].usage.completion_tokens == counts["completion_tokens"]
    assert pair.taken_over() == taken_over + 1


def test_without_another_engine_the_stream_ends_with_an_error(pair: Pair) -> None:
    first, *_ = pair.engines.values()
    first.kill()
    assert comes_true(lambda: not pair.all_ready(), 10)
    reading = Reading(pair.gateway, QUESTIONS[0])
    reading.start()
    assert pair.killed([reading]) == [reading]
    assert reading.chunks[-1]["error"]["code"] == "engine_interrupted"
    assert "data: [DONE]" not in reading.lines
