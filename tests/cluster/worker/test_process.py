"""`gllm worker` as a process: what it says, how it ends, and that nothing of it is left, however that was."""

import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from app.cluster.control import Status, WorkerState
from tests.cluster.worker.conftest import SCRIPTED
from tests.support.ports import free_port
from tests.support.processes import ROOT, Server, alive, clean_environment, comes_true

SOON_S = 60.0
WORKER = (sys.executable, "-c", "import sys; from gllm.cli import main; sys.exit(main())", "worker")


class WorkerProcess(Server):
    def __init__(self, folder: Path, *args: str, port: int | None = None, **settings: str) -> None:
        port = port or free_port()
        command = f"{shlex.quote(sys.executable)} {SCRIPTED} --host {{host}} --port {{port}} --model {{model}}"
        words = f"{command} --names {{name}} --folder {folder}"
        env = clean_environment(**{"ENGINE_TYPE": "command", "ENGINE_COMMAND": words, "LOG_FORMAT": "text", **settings})
        argv = [*WORKER, "--name", "w", "--port", str(port), *args]
        super().__init__("w", argv, port, folder / "said", {key: value for key, value in env.items() if value}, folder)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
        return found

    def status(self, **query: Any) -> Status:
        return msgspec.json.decode(self.http.get("/status", params=query, timeout=90).content, type=Status)

    def until(self, true: Callable[[Status], bool], limit_s: float = SOON_S) -> Status:
        last: list[Status] = []

        def looked() -> bool:
            assert self.running, self.tail()
            try:
                last.append(self.status())
            except httpx.HTTPError:
                return False
            return true(last[-1])

        assert comes_true(looked, limit_s), f"{last[-1:]}\n{self.tail()}"
        return last[-1]

    def until_ready(self, limit_s: float = SOON_S) -> Status:
        return self.until(lambda status: status.state is WorkerState.READY, limit_s)

    def until_said(self, words: str) -> None:
        assert comes_true(lambda: words in self.said, SOON_S), self.tail()

    def load(self, model: str, **more: object) -> httpx.Response:
        return self.http.post("/load_model", json={"model_path": model, **more})


Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[WorkerProcess] = []

    def one(*args: str, **more: Any) -> WorkerProcess:
        started.append(WorkerProcess(tmp_path, *args, **more))
        return started[-1]

    yield one
    families = [member for each in started if each.running for member in each.family()]
    for each in started:
        each.end()
    _, left = psutil.wait_procs(families, timeout=15)
    assert left == []


def test_it_serves_until_interrupted_and_says_its_last_word(start: Start) -> None:
    worker = start("--model", "well")
    worker.until_ready()
    worker.until_said("w serves well at http://127.0.0.1:")
    family, version = worker.family(), worker.status().version
    last: list[Status] = []

    def look() -> None:
        while not last or last[-1].state is not WorkerState.STOPPED:
            last.append(worker.status(after=last[-1].version if last else version, wait_s=30))

    looking = threading.Thread(target=look)
    looking.start()
    worker.signal(signal.SIGINT)
    assert worker.wait(10) == 0
    looking.join(10)
    assert last[-1].state is WorkerState.STOPPED
    assert len(family) == 2  # keeper and engine
    assert not any(each.is_running() for each in family)
    assert "Traceback" not in worker.said


def test_a_closed_terminal_ends_it_in_peace_however_often_that_is_said(start: Start) -> None:
    worker = start("--model", "well")
    worker.until_ready()
    family = worker.family()
    for _ in range(2):
        worker.signal(signal.SIGHUP)
        time.sleep(0.02)
    assert worker.wait(10) == 0
    assert "Stopping." in worker.said
    assert not any(each.is_running() for each in family)


def test_a_second_signal_ends_it_at_once(start: Start, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("1")
    worker = start("--model", "well", HEARTBEAT_INTERVAL="5")
    worker.until_ready()
    family = worker.family()
    worker.signal(signal.SIGTERM)
    worker.until_said("Once more stops at once.")
    worker.signal(signal.SIGTERM)
    assert worker.wait(2) == 130
    _, left = psutil.wait_procs(family, timeout=10)
    assert left == []


def test_a_signal_while_the_engine_loads_leaves_nothing(start: Start) -> None:
    worker = start("--model", "well-slow600")
    worker.until_said("checkpoint shards:   0%")
    family = worker.family()
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert not any(each.is_running() for each in family)


def test_kill_9_leaves_no_engine_and_the_next_start_finds_its_ports_free(start: Start) -> None:
    worker = start("--model", "well")
    url = worker.until_ready().engine_url
    family = worker.family()
    worker.kill()
    again = start("--model", "well", port=worker.port)  # at once: it waits until the last engine is gone
    assert again.until_ready().engine_url == url
    assert not any(alive(each.pid) for each in family)  # whoever is not buried yet has ended, too


def test_what_a_keeper_could_not_end_the_next_start_does(start: Start) -> None:
    worker = start("--model", "well-helper")
    worker.until_ready()
    keeper, *_ = worker.family()
    helper = int(worker.said.partition("helper ")[2].split()[0])
    keeper.suspend()
    worker.kill()
    keeper.kill()
    assert alive(helper)
    again = start("--model", "well", port=worker.port)
    again.until_ready()
    assert not alive(helper)
    assert f"Ended process {helper} (python" in again.said


def test_a_name_is_used_once_in_a_folder(start: Start) -> None:
    start("--model", "well").until_ready()
    other = start("--model", "well")
    assert other.wait(SOON_S) == 1
    assert "gllm: The name w is in use by process " in other.said


def test_taken_ports_are_skipped_and_said(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, engine_port = one.getsockname()[1], two.getsockname()[1]
        worker = start("--engine-port", str(engine_port), port=port)
        worker.until_said("takes orders at http://127.0.0.1:")
        assert f"Port {port} is taken; trying the next.\n" in worker.said
        assert f"Port {engine_port} is taken; trying the next." in worker.said
        worker.end()


def test_without_a_model_it_waits_for_one(start: Start) -> None:
    worker = start("--", "--quiet")
    worker.until_said("It has no model yet")
    assert worker.load("bad").status_code == 202
    failed = worker.until(lambda status: status.state is WorkerState.FAILED)
    assert failed.failure
    assert failed.failure.tail == ("loading bad", "no such model: bad")
    worker.until_said("w did not start: exit code 1.\n  | loading bad\n  | no such model: bad\nIt waits for another")
    worker.load("well")
    assert worker.until_ready().names == ("well",)


def test_it_registers_with_a_gateway_of_its_own_words(start: Start) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        gateway.settimeout(SOON_S)
        worker = start(ROUTER_ADDRESS=f"127.0.0.1:{gateway.getsockname()[1]}", CLUSTER_SECRET="s3")
        with gateway.accept()[0] as connection:
            while b"address" not in b"".join(heard):
                heard.append(connection.recv(65_536))
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            worker.until_said("Registered with the gateway at http://127.0.0.1:")
    assert f'{{"address":"{worker.url}"}}'.encode() in b"".join(heard)
    assert b"authorization: Bearer s3" in b"".join(heard).replace(b"Authorization", b"authorization")
    assert worker.http.get("/status").status_code == 401


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--host", "0.0.0.0"), "gllm: --host 0.0.0.0 is reachable from other machines and nothing asks callers"),
        (("--engine", "external"), "gllm: ENGINE_TYPE=external needs ENGINE_URLS"),
        (
            ("--engine", "workers"),
            "gllm: A worker starts its engine: ENGINE_TYPE=workers is for gateways; add --engine.",
        ),
        (("--name", "a/b"), "gllm: --name takes up to 63 letters"),
        (("--advertise", "http://me"), "gllm: --advertise takes a host name or an address"),
        (("--secret-file", "nowhere"), "gllm: --secret-file nowhere cannot be read: No such file or directory."),
        (("well",), "gllm: 'well' is no option; what is meant for the engine follows '--'."),
        (("--port", "70000"), "gllm: PORT must be a number from 0 to 65535, not '70000'."),
    ],
)
def test_what_cannot_be_is_one_sentence(start: Start, args: tuple[str, ...], sentence: str) -> None:
    worker = start(*args, ENGINE_COMMAND="" if "--engine" in args else "true {port}", ENGINE_TYPE="command")
    assert worker.wait(SOON_S) == 2
    assert worker.said.startswith(sentence), worker.said
    assert worker.said.count("\n") == 1


def ask(url: str, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "A worker owns", "max_tokens": 4}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)


@pytest.mark.timeout(600)
def test_the_real_engine_loaded_swapped_killed_and_released(start: Start, tmp_path: Path) -> None:
    """Many starts of the real engine; one test, so that each is used."""
    demo = str(ROOT / "models" / "demo")
    other, hollow = tmp_path / "other", tmp_path / "hollow"
    shutil.copytree(demo, other, ignore=shutil.ignore_patterns("corpus", "*.py"))
    hollow.mkdir()
    worker = start(ENGINE_TYPE="transformers", ENGINE_COMMAND="", GPUS="none")
    worker.until_said("It has no model yet")

    worker.load(demo, names=["demo", "alias"])
    ready = worker.until_ready(180)
    assert ready.engine_url
    assert [ask(ready.engine_url, name).status_code for name in ("demo", "alias", "else")] == [200, 200, 404]

    worker.load(str(other), id="swap")
    ready = worker.until(lambda status: status.names == ("other",) and status.state is WorkerState.READY, 180)
    assert ready.engine_url
    assert [ask(ready.engine_url, name).status_code for name in ("other", "demo")] == [200, 404]

    assert worker.load(str(tmp_path / "nowhere")).status_code == 502
    assert worker.status().state is WorkerState.READY  # it was never disturbed

    worker.load(str(hollow), id="hollow")
    ready = worker.until(lambda status: status.failure is not None and status.state is WorkerState.READY, 180)
    assert (ready.names, ready.order and ready.order.id, ready.starts) == (("other",), "swap", 4)
    assert ready.failure
    assert ready.failure.order.id == "hollow"
    assert "hollow" in " ".join(ready.failure.tail)

    worker.family()[-1].kill()
    ready = worker.until(lambda status: status.starts == 5 and status.state is WorkerState.READY, 180)
    assert ready.engine_url
    assert ask(ready.engine_url, "other").status_code == 200

    assert worker.http.post("/release_gpus", timeout=60).status_code == 200
    assert worker.family() == []
    assert worker.status().state is WorkerState.EMPTY
    with pytest.raises(httpx.ConnectError):
        ask(ready.engine_url, "other")

    worker.load(demo)
    worker.until(lambda status: bool(status.progress and status.progress.said), 180)
    family = worker.family()
    worker.kill()
    _, left = psutil.wait_procs(family, timeout=10)
    assert left == []
