"""A worker on a real GPU: the lease that nobody else gets, and memory that is back when "released" is said."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from app.cluster.gpus.inventory import Gpu, Inventory, Memory
from app.cluster.gpus.proof import SLACK
from tests.support.ports import free_port
from tests.support.processes import alive, clean_environment, comes_true
from tests.support.start_cluster import GLLM_COMMAND, MODEL, READY, STARTING_S, Cluster, complete, gllm

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(2 * STARTING_S)]

ARGS = {"transformers": (), "vllm": ("--", "--enforce-eager", "--gpu-memory-utilization", "0.3")}
LEAST = 256 * 2**20
"""A CUDA context alone takes more."""


class OnGpu(Cluster):
    """One worker on one GPU, and what the driver tells of it."""

    def __init__(self, engine: str, logs: Path, gpu: Gpu, inventory: Inventory) -> None:
        self._gpu, self._inventory = gpu, inventory
        self.before = self.memory()
        self.engine = engine
        super().__init__(
            f"on-gpu-{engine}",
            logs,
            *("--engine", engine, "--load-model", MODEL),
            *ARGS[engine],
            workers=str(gpu.index),
            OMP_NUM_THREADS="4",
        )

    def memory(self) -> Memory:
        seen = self._inventory.memory(self._gpu)
        assert seen is not None
        return seen

    def taken(self) -> int:
        return self.memory().used - self.before.used

    def ours_on_it(self) -> set[int]:
        return self.memory().holders.keys() - self.before.holders.keys()

    def is_free(self) -> bool:
        return self.taken() <= SLACK and not self.ours_on_it()

    def on_engine_ports(self) -> list[int]:
        """The engine and all that it started: those that were told to see this GPU."""
        return [pid for pid in self.children() if self._sees(pid) == str(self._gpu.index)]

    @staticmethod
    def _sees(pid: int) -> str | None:
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(b"CUDA_VISIBLE_DEVICES="):
                    return entry.partition(b"=")[2].decode()
        return None


@pytest.fixture(scope="module")
def cluster(engine: str, logs: Path, gpu: Gpu, inventory: Inventory) -> Iterator[OnGpu]:
    started = OnGpu(engine, logs, gpu, inventory)
    try:
        started.await_text(READY)
        yield started
    finally:
        began = time.monotonic()
        started.signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            started.wait(20)
        took_s = time.monotonic() - began
        started.end()
        left = started.mark.processes()
    assert left == []
    assert took_s < 10
    assert started.is_free()


def test_the_engine_is_on_its_gpu(cluster: OnGpu) -> None:
    cluster.await_whole(workers=1)
    assert cluster.taken() > LEAST
    assert cluster.ours_on_it()
    assert cluster.ours_on_it() <= set(cluster.on_engine_ports())


def test_it_answers_the_same_each_time(cluster: OnGpu) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "What is batching?"}], "max_tokens": 24}
    body |= {"temperature": 0}
    answers = [httpx.post(f"{cluster.url}/v1/chat/completions", json=body, timeout=60).json() for _ in range(3)]
    texts = {answer["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) == 1
    assert "".join(texts)
    assert answers[0]["usage"]["completion_tokens"] > 1


def test_somebody_elses_worker_is_refused_the_gpu(cluster: OnGpu, gpu: Gpu, tmp_path: Path) -> None:
    for name in (str(gpu.index), gpu.uuid, gpu.uuid[:12]):
        worker = (*GLLM_COMMAND, "worker", "--name", "other", "--port", str(free_port()), "--gpus", name)
        command = [*worker, "--engine", "transformers"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=clean_environment(), cwd=tmp_path, check=False
        )
        assert done.returncode not in (0, None), done.stdout
        assert re.search(rf"{gpu.shown} is in use by process \d+ \(worker worker-0\)", done.stderr + done.stdout)
    assert complete(cluster.url)


def test_released_is_said_when_the_memory_is_back(cluster: OnGpu) -> None:
    cluster.await_whole(workers=1)
    family = cluster.on_engine_ports()
    done = gllm("release", "worker-0", url=cluster.url)
    assert cluster.is_free(), cluster.memory()
    assert done.returncode == 0, done.stderr
    assert "memory is free" in done.stdout
    assert not any(map(alive, family))
    assert cluster.states() == ["empty"]


def test_a_model_is_loaded_again(cluster: OnGpu) -> None:
    answer = httpx.post(f"{cluster.url}/load_model", json={"model_path": MODEL}, timeout=STARTING_S)
    assert answer.status_code == 200, answer.text
    cluster.await_whole(workers=1)
    assert cluster.taken() > LEAST


def test_an_engine_that_is_killed_comes_back_and_takes_no_more_than_before(cluster: OnGpu) -> None:
    cluster.await_whole(workers=1)
    taken, on_it = cluster.taken(), cluster.ours_on_it()
    os.kill(min(on_it), signal.SIGKILL)
    assert comes_true(lambda: not cluster.ours_on_it() & on_it, 30)
    assert comes_true(lambda: bool(cluster.ours_on_it()) and complete(cluster.url), STARTING_S, 0.3), cluster.tail(60)
    cluster.await_whole(workers=1)
    assert cluster.taken() < 1.2 * taken
    assert not cluster.ours_on_it() & on_it


def test_a_worker_that_is_killed_gives_the_gpu_back_and_takes_it_anew(cluster: OnGpu) -> None:
    cluster.await_whole(workers=1)
    on_it = cluster.ours_on_it()
    cluster.kill_one("worker", "worker-0")
    assert comes_true(lambda: not any(map(alive, on_it)), 20)
    cluster.await_text("worker-0 is back after ")
    cluster.await_whole(workers=1)
    assert cluster.ours_on_it()
    assert not cluster.ours_on_it() & on_it
