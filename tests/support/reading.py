"""Clients that read a stream each, and what they have read when its engine is killed in its middle."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.support.processes import GatewayProcess, comes_true

QUESTIONS = (
    "Tell me a story about a container and a gateway.",
    "Tell me a story about a small server.",
    "Hello! Tell me about distributed systems.",
    "Explain Docker in simple terms",
    "What is an LLM gateway?",
    "What is gllm?",
    "What is continuous batching?",
    "What is the KV cache?",
)
WITH_USAGE = {"stream_options": {"include_usage": True}}


def asking(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "demo", "messages": messages, "max_tokens": 150, "temperature": 0, "stream": True, **more}


class Reading(threading.Thread):
    """A client that reads one stream to its end."""

    def __init__(self, gateway: GatewayProcess, question: str, key: str | None = None) -> None:
        super().__init__()
        self.question = question
        self.id = ""
        self.replica = ""
        self.lines: list[str] = []
        self._gateway = gateway
        self._headers = {} if key is None else {"idempotency-key": key}

    def run(self) -> None:
        url, asked = f"{self._gateway.url}/v1/chat/completions", asking(self.question, **WITH_USAGE)
        with httpx.stream("POST", url, json=asked, headers=self._headers, trust_env=False, timeout=60) as answer:
            self.id, self.replica = answer.headers["x-request-id"], answer.headers["x-gllm-replica"]
            for line in answer.iter_lines():
                self.lines.append(line)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        data = [line.removeprefix("data: ") for line in self.lines if line.startswith("data: {")]
        return [json.loads(each) for each in data]

    @property
    def choices(self) -> list[dict[str, Any]]:
        return [chunk["choices"][0] for chunk in self.chunks if chunk["choices"]]

    @property
    def text(self) -> str:
        return "".join(choice["delta"].get("content") or "" for choice in self.choices)

    @property
    def told(self) -> tuple[str, str | None, dict[str, int]]:
        """The answer: its text, why it ended, and what it used."""
        used = self.chunks[-1]["usage"]
        counts = {name: used[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
        return self.text, self.choices[-1]["finish_reason"], counts

    def is_one_answer(self) -> bool:
        """One head, one who speaks, one end, and nothing after it."""
        heads = {(chunk["id"], chunk["created"], chunk["model"]) for chunk in self.chunks}
        roles = [number for number, choice in enumerate(self.choices) if choice["delta"].get("role")]
        ends = [number for number, choice in enumerate(self.choices) if choice["finish_reason"]]
        whole = [line for line in self.lines if line and not line.startswith("id: ")]
        return (
            (len(heads), roles, ends) == (1, [0], [len(self.choices) - 1])
            and sum("usage" in chunk and chunk["usage"] is not None for chunk in self.chunks) == 1
            and whole[-1] == "data: [DONE]"
            and whole.count("data: [DONE]") == 1
            and not any("error" in chunk for chunk in self.chunks)
        )


def undisturbed(gateway: GatewayProcess) -> dict[str, Any]:
    """What all of them are told where nothing dies."""
    told = {}
    for question in QUESTIONS:
        reading = Reading(gateway, question)
        reading.run()
        assert reading.is_one_answer(), reading.lines
        told[question] = reading.told
    return told


def kill_in_mid_stream(
    readings: list[Reading], pid_of: Callable[[str], int], kill: Callable[[int], None], after: int = 10
) -> list[Reading]:
    """The server that the first of them reads from. It is frozen before, so that it is certain whose streams had not
    come to their ends: these are given back, when all have been read."""
    first = readings[0]
    assert comes_true(
        lambda: len(first.lines) > 2 * after and all(each.replica for each in readings), 20, every_s=0.001
    )
    victim = pid_of(first.replica)
    os.kill(victim, signal.SIGSTOP)
    assert comes_true(lambda: _rest([each for each in readings if each.replica == first.replica]), 10)
    lost = [each for each in readings if each.replica == first.replica and each.is_alive()]
    kill(victim)
    for each in readings:
        each.join(60)
        assert not each.is_alive()
    return lost


def _rest(readings: list[Reading]) -> bool:
    """Nothing is on its way to them any more."""
    before = [len(each.lines) for each in readings]
    time.sleep(0.2)
    return before == [len(each.lines) for each in readings]
