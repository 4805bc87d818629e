"""How an engine begins and ends, and what it does at its limits."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest

from tests.engines.transformers.conftest import DEMO, Running, started
from tests.engines.transformers.test_server import raw_request, settled

KEY = "a-secret-key"
AUTH = {"authorization": f"Bearer {KEY}"}
HI = [{"role": "user", "content": "hi"}]
CONTEXT = 60 * 16


@pytest.fixture(scope="module")
def small() -> Iterator[Running]:
    """An engine with room for two sequences and one that waits, and a cache smaller than the model's context."""
    limits = ("--max-num-seqs", "2", "--max-queue", "1", "--num-blocks", "60", "--grace", "1")
    with started("--model", str(DEMO), "--served-model-name", "demo", "--api-key", KEY, *limits) as running:
        yield running


class Attempt:
    """A process that is expected to end by itself."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "app.engines.transformers", *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=DEMO.parents[1])

    def end(self) -> tuple[int, str, str]:
        said, complained = self.process.communicate(timeout=60)
        return self.process.returncode, said, complained


def test_an_engine_that_cannot_start_says_why_in_one_sentence(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "broken", ignore=shutil.ignore_patterns("*.safetensors", "corpus"))
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        attempts = {
            "cannot be loaded": Attempt("--model", str(tmp_path / "broken"), "--port", "0"),
            "is not a folder": Attempt("--model", "/nowhere/at/all", "--port", "0"),
            "Cannot listen": Attempt("--model", str(DEMO), "--port", port),
        }
        for reason, attempt in attempts.items():
            code, said, complained = attempt.end()
            assert code == 1
            assert reason in complained
            assert len(complained.strip().splitlines()) == 1, complained
            assert "Traceback" not in complained
            assert said.splitlines()[-1].startswith("engine: failed ")


def test_a_device_that_is_not_there_is_said_to_be_missing() -> None:
    from app.engines.transformers.model import LoadFailed, load

    with patch("torch.cuda.is_available", return_value=False), pytest.raises(LoadFailed, match="no CUDA device"):
        load(str(DEMO), device="cuda", dtype="auto", tell=lambda stage: None)


@pytest.mark.parametrize(("present", "taken", "dtype"), [(True, "cuda", "bfloat16"), (False, "cpu", "float32")])
def test_a_gpu_is_taken_where_there_is_one(present: bool, taken: str, dtype: str) -> None:
    from app.engines.transformers.model import _device, _dtype

    with patch("torch.cuda.is_available", return_value=present):
        device = _device("auto")
    assert device.type == taken
    assert str(_dtype("auto", device)) == f"torch.{dtype}"


def test_progress_is_told_line_by_line(small: Running) -> None:
    stages = [line.split(" at=")[0] for line in small.said]
    assert stages[0] == "engine: importing"
    assert stages[1] == f"engine: loading model={DEMO}"
    assert stages[2].startswith("engine: loading weights device=cpu dtype=float32")
    assert stages[3] == "engine: warming up"
    assert stages[4].startswith(f"engine: ready url={small.url} seconds=")
    assert len(stages) == 5


def test_the_key_is_asked_for_on_all_but_health_version_and_metrics(small: Running) -> None:
    for path in ("/health", "/version", "/metrics"):
        assert httpx.get(small.url + path).status_code == 200
    for path in ("/v1/models", "/tokenize", "/v1/chat/completions", "/anything"):
        missing, wrong = (
            httpx.request("POST", small.url + path, headers=each, json={})
            for each in ({}, {"authorization": "Bearer wrong"})
        )
        assert (missing.status_code, missing.json()["error"]["code"]) == (401, "missing_api_key")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "invalid_api_key")
        assert KEY not in wrong.text
    assert httpx.get(f"{small.url}/v1/models", headers=AUTH).status_code == 200


def test_the_context_is_no_larger_than_the_cache(small: Running) -> None:
    (model,) = httpx.get(f"{small.url}/v1/models", headers=AUTH).json()["data"]
    assert model["max_model_len"] == CONTEXT
    body = {"prompt": [5] * (CONTEXT - 4), "max_tokens": 5}
    refused = httpx.post(f"{small.url}/v1/completions", headers=AUTH, json=body)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    body["max_tokens"] = 4
    fits = httpx.post(f"{small.url}/v1/completions", headers=AUTH, json=body | {"ignore_eos": True}, timeout=30)
    assert fits.json()["usage"]["total_tokens"] == CONTEXT


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/chat/completions", json={"messages": HI} | fields)


@pytest.mark.alone
async def test_a_full_queue_answers_503_with_retry_after(small: Running) -> None:
    async with httpx.AsyncClient(base_url=small.url, headers=AUTH, timeout=60) as client:
        too_many = await ask(client, n=4)
        assert too_many.json()["error"]["code"] == "queue_full"
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(ask(client, max_tokens=150, ignore_eos=True)) for _ in range(3)]
            await settled(small, "vllm:num_requests_waiting", 1, 5)
            begun = time.monotonic()
            refused = await ask(client, max_tokens=2)
            assert time.monotonic() - begun < 0.2
            assert refused.status_code == 503
            assert refused.json()["error"] == {
                "message": "Too many requests are in this engine already.",
                "type": "overloaded_error",
                "param": None,
                "code": "queue_full",
            }
            assert int(refused.headers["retry-after"]) >= 1
        assert [each.result().status_code for each in running] == [200] * 3
        assert (await ask(client, max_tokens=2)).status_code == 200


async def test_a_hang_up_in_the_queue_gives_the_place_back(small: Running) -> None:
    def request() -> Any:
        return raw_request(small, max_tokens=250, key=KEY)

    async with request(), request():
        await settled(small, "vllm:num_requests_running", 2, 5)
        async with request():
            await settled(small, "vllm:num_requests_waiting", 1, 5)
        assert await settled(small, "vllm:num_requests_waiting", 0, 1) < 0.8
    await settled(small, "vllm:num_requests_running", 0, 1)


async def test_a_signal_ends_it_politely(small: Running) -> None:
    """The last test of this file: what can finish does, what is new is refused, and the rest ends with an error."""
    async with (
        httpx.AsyncClient(base_url=small.url, headers=AUTH, timeout=30) as client,
        raw_request(small, key=KEY, stream=True, max_tokens=CONTEXT - 30) as long,
    ):
        await long.readuntil(b"assistant")
        async with asyncio.TaskGroup() as group:
            short = group.create_task(ask(client, max_tokens=30, ignore_eos=True))
            await settled(small, "vllm:num_requests_running", 2, 5)
            small.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            while (await client.get("/health")).status_code == 200:
                await asyncio.sleep(0.005)
            refused = await ask(client, max_tokens=2)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert short.result().status_code == 200
        rest = (await long.read()).decode(errors="replace")
    assert "[DONE]" not in rest
    event = rest[rest.index('data: {"error"') :].splitlines()[0]
    assert json.loads(event.removeprefix("data: "))["error"]["type"] == "api_error"
    assert await asyncio.to_thread(small.process.wait, 10) == 0
    assert time.monotonic() - begun < 8
