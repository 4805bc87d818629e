"""`gllm` as people run it: a real process, and what it leaves behind."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.marked import Mark

CHECKOUT = Path(__file__).parents[2]
GLLM = (sys.executable, "-c", "import sys; from gllm.cli import main; sys.exit(main())")
WITH_STAND_INS = (sys.executable, str(Path(__file__).with_name("with_stand_ins.py")))


class Gllm:
    """One running `gllm`, with all that it says in one text."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def text(self) -> str:
        return self._output.read_text()

    @property
    def url(self) -> str:
        """The gateway's, from what it says about itself."""
        found: list[str] = re.findall(r"at (http://127\.0\.0\.1:\d+) ", self.text)
        return found[-1]

    def until(self, text: str) -> None:
        self._until(text, self._output)

    def until_engine_says(self, text: str) -> None:
        self._until(text, self._output.parent / ".state" / "logs" / "engine-0.log")

    def _until(self, text: str, said: Path, within_s: float = 60) -> None:
        give_up = time.monotonic() + within_s
        while text not in said.read_text():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < give_up, self.text
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return children

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait(self, within_s: float = 20) -> int:
        return self.process.wait(timeout=within_s)


Run = Callable[..., Gllm]


@pytest.fixture
def gllm(tmp_path: Path) -> Iterator[Run]:
    """Starts `gllm ARGS` in a folder of its own; afterwards nothing of it may be left."""
    yield from _running(GLLM, tmp_path)


@pytest.fixture
def gllm_of_stand_ins(tmp_path: Path) -> Iterator[Run]:
    """The same; but the processes that a cluster is made of are stand-ins, there in a moment."""
    yield from _running(WITH_STAND_INS, tmp_path)


def _running(gllm: tuple[str, ...], tmp_path: Path) -> Iterator[Run]:
    started: list[Gllm] = []
    families: list[psutil.Process] = []

    def run(*args: str, **env: str) -> Gllm:
        output = tmp_path / f"output-{len(started)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*gllm, *args],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT), "PATH": f"{tmp_path}:{os.environ['PATH']}", **env},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        started.append(Gllm(process, output))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            families += each.family()
            each.process.kill()
            each.process.wait()
    _, alive = psutil.wait_procs(families, timeout=15)
    assert alive == []


@pytest.fixture
def mark() -> Mark:
    return Mark()


@pytest.fixture
def fake_vllm(tmp_path: Path) -> None:
    """A `vllm` on the PATH."""
    command = tmp_path / "vllm"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("fake_vllm.py")}" "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)


def chat(url: str, text: str, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
