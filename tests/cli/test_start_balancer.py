"""`gllm start-balancer` with a stand-in for its gateway, and for workers that somebody else starts."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gllm.cli import main
from tests.cli.conftest import Run
from tests.support.marked import Mark
from tests.support.ports import free_port
from tests.support.processes import Process, clean_environment

STAND_IN = Path(__file__).with_name("stand_in.py")
SECRET = {"CLUSTER_SECRET": "of-the-cluster"}

Worker = Callable[[int], Process]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    started: list[Process] = []

    def start(port: int) -> Process:
        words = ("worker", "--name", f"w-{port}", "--host", "127.0.0.1", "--port", str(port), "--gpus", "none")
        argv = [sys.executable, str(STAND_IN), *words]
        started.append(Process(f"w-{port}", argv, tmp_path / f"{port}.log", clean_environment(**SECRET)))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_it_loads_a_model_on_workers_that_run(gllm_of_stand_ins: Run, worker: Worker) -> None:
    ports = [free_port(), free_port()]
    for port in ports:
        worker(port)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    running = gllm_of_stand_ins("start-balancer", "-p", "0", "-ew", *urls, "--load-model", "org/tiny", **SECRET)
    running.until("Ctrl+C stops it.")
    assert f"serves tiny at {running.url} " in running.text
    assert all(f"w-{port}: ready" in running.text for port in ports)
    assert len(running.family()) == 2  # the gateway and its keeper


def test_workers_that_are_not_there_yet_are_told_and_waited_for(gllm_of_stand_ins: Run, worker: Worker) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    running = gllm_of_stand_ins("start-balancer", "-p", "0", "-ew", url, "--load-model", "org/tiny", **SECRET)
    running.until(
        f"No worker of this cluster answers at {url} yet. The gateway goes on looking, and then loads org/tiny.\n"
    )
    assert "serves" not in running.text
    worker(port)
    running.until("serves tiny at ")


def test_without_a_model_nobody_is_waited_for(gllm_of_stand_ins: Run) -> None:
    running = gllm_of_stand_ins("start-balancer", "-p", "0", "-ew", "http://127.0.0.1:9", **SECRET)
    running.until("Ctrl+C stops it.")
    assert "No worker of this cluster answers at http://127.0.0.1:9 yet. The gateway goes on looking.\n" in running.text


def test_it_says_how_workers_find_it(gllm_of_stand_ins: Run, mark: Mark) -> None:
    running = gllm_of_stand_ins("start-balancer", "-p", "0", **SECRET, **mark.env)
    running.until("Ctrl+C stops it.")
    url = re.findall(r"is at (\S+) with no workers yet", running.text)[0]
    assert f"gllm worker --gateway {url}" in running.text
    running.interrupt()
    assert running.wait() == 0
    assert mark.processes() == []


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--load-model", "m"], "--load-model requires --existing-workers to be specified."),
        (
            ["-ew", "gpu-1:8000"],
            "--existing-workers must be base URLs like http://127.0.0.1:8100 or https://models.example.com.",
        ),
        (
            ["--ip", "0.0.0.0"],
            "HOST=0.0.0.0 is reachable from other machines and nothing asks callers for a key: "
            "set TENANTS_FILE, listen on 127.0.0.1, or set ALLOW_ANONYMOUS=true if that is what you want.",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["start-balancer", "-p", "0", *args]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"gllm: {sentence}\n")
