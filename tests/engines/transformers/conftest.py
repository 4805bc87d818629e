"""What the tests share: a tiny network in this process, the demo model's tokens, and a real engine process."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from app.engines.transformers.batch import Batch  # noqa: E402  # after the check that they can be
from app.engines.transformers.job import Job, News  # noqa: E402
from app.engines.transformers.manager import Limits  # noqa: E402
from app.engines.transformers.sampling import Sampling  # noqa: E402
from app.engines.transformers.tokens import Tokens  # noqa: E402
from tests.support.ports import free_port  # noqa: E402

DEMO = Path(__file__).parents[3] / "models" / "demo"
VOCABULARY = 97

# --- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def network() -> Any:
    """A network with random weights, small enough to be stepped thousands of times."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def demo_tokens() -> Tokens:
    from transformers import AutoTokenizer

    return Tokens(AutoTokenizer.from_pretrained(DEMO), 3072)


class Bench:
    """A batch and everything that has come out of it."""

    def __init__(self, network: Any, limits: Limits) -> None:
        self.died = threading.Event()
        self.batch = Batch(network, limits, self._on_news, self.died.set)
        self._news: queue.Queue[News] = queue.Queue()
        self.steps: list[int] = []
        self._made = 0

    def _on_news(self, news: list[News], step_tokens: int) -> None:
        self.steps.append(step_tokens)
        for each in news:
            self._news.put(each)

    def job(self, prompt: list[int], max_tokens: int, sampling: Sampling | None = None, **given: Any) -> Job:
        self._made += 1
        return Job(
            f"job-{self._made}",
            prompt,
            sampling or Sampling(temperature=0.0),
            max_tokens,
            given.get("eos", frozenset()),
            given.get("stop_ids", frozenset()),
        )

    def submit(self, prompt: list[int], max_tokens: int, sampling: Sampling | None = None, **given: Any) -> Job:
        job = self.job(prompt, max_tokens, sampling, **given)
        self.batch.submit(job)
        return job

    def next(self) -> News:
        return self._news.get(timeout=20)

    def until_done(self, *jobs: Job) -> dict[str, str]:
        """How each of them ended."""
        ends: dict[str, str] = {}
        while len(ends) < len(jobs):
            news = self.next()
            if news.finish and news.job in jobs:
                ends[news.job.id] = news.finish
        return ends

    def run(self, prompt: list[int], max_tokens: int, sampling: Sampling | None = None, **given: Any) -> list[int]:
        job = self.submit(prompt, max_tokens, sampling, **given)
        self.until_done(job)
        return job.row.produced


@pytest.fixture
def bench(network: Any) -> Iterator[Callable[..., Bench]]:
    """Batches over the tiny network, stopped at the end."""
    made: list[Bench] = []

    def make(*, sequences: int = 8, tokens: int = 64, blocks: int = 128) -> Bench:
        one = Bench(network, Limits(tokens, sequences, blocks, page_size=16))
        one.batch.start()
        made.append(one)
        return one

    yield make
    for each in made:
        each.batch.stop()


# --- a real process ---------------------------------------------------------------------------------------------------


class Running:
    """An engine process."""

    def __init__(self, process: "subprocess.Popen[str]", port: int, said: list[str]) -> None:
        self.process, self.port, self.said = process, port, said
        self.url = f"http://127.0.0.1:{port}"

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        total = 0.0
        for line in httpx.get(f"{self.url}/metrics").text.splitlines():
            if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total


@contextmanager
def started(*arguments: str) -> Iterator[Running]:
    port = free_port()
    command = [sys.executable, "-m", "app.engines.transformers", "--port", str(port), *arguments]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=DEMO.parents[1]
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line.strip())
            if line.startswith("engine: ready"):
                break
        yield Running(process, port, said)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture(scope="package")
def engine() -> Iterator[Running]:
    """The demo model, served by a process of its own."""
    with started("--model", str(DEMO), "--served-model-name", "demo") as running:
        yield running
