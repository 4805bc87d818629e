"""`gllm start-cluster` as a process, seen from outside and commanded as operators do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from tests.support.marked import Mark
from tests.support.ports import free_port
from tests.support.processes import ROOT, Server, clean_environment, comes_true

GLLM_COMMAND = (sys.executable, "-c", "import sys; from gllm.cli import main; sys.exit(main())")
MODEL = str(ROOT / "models" / "demo")
READY = "docs at http://"
STARTING_S = 240.0
"""On a machine with other work: an engine imports for most of it."""


class Cluster(Server):
    """The command as a process, and what it started."""

    def __init__(self, name: str, logs: Path, *args: str, workers: str = "0:1", **env: str) -> None:
        self.mark = Mark()
        self.first_port = free_port(room=200)  # for two workers, a hundred apart
        port = free_port()
        argv = [*GLLM_COMMAND, "start-cluster", "--port", str(port), "--workers", workers]
        argv += ["--worker-port-range-start", str(self.first_port), "--engine", "transformers", *args]
        folder = logs / name
        folder.mkdir()
        super().__init__(name, argv, port, logs / f"{name}.log", clean_environment(**self.mark.env, **env), folder)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def await_text(self, text: str, limit_s: float = STARTING_S) -> None:
        def said() -> bool:
            assert self.running or text in self.text, f"it ended\n{self.tail(60)}"
            return text in self.text

        assert comes_true(said, limit_s), f"{text!r} was not said\n{self.tail(60)}"

    def pid_of(self, *words: str) -> int:
        """The one process below it with these words on its command line, and no keeper."""
        found = []
        for pid in self.children():
            line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if all(word.encode() in line for word in words) and not any(b"keeper.py" in word for word in line):
                found.append(pid)
        assert len(found) == 1, (words, found)
        return found[0]

    def kill_one(self, *words: str) -> None:
        os.kill(self.pid_of(*words), signal.SIGKILL)

    def states(self) -> list[str]:
        done = gllm("status", "--json", url=self.url)
        return [each["state"] for each in json.loads(done.stdout)] if done.returncode == 0 else []

    def await_whole(self, workers: int = 2) -> None:
        assert comes_true(lambda: self.states() == ["ready"] * workers, STARTING_S, 0.3), self.tail(60)
        assert complete(self.url)


def gllm(*words: str, url: str, **more: str) -> "subprocess.CompletedProcess[str]":
    env = clean_environment(GLLM_URL=url, **more)
    argv = [*GLLM_COMMAND, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=STARTING_S, env=env, check=False)


def complete(url: str) -> bool:
    body = {"model": "demo", "prompt": "Docker is", "max_tokens": 3}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=30, trust_env=False).status_code == 200
