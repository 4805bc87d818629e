"""`gllm start-cluster` with stand-ins for its gateway and workers; the command itself, keepers and signals are real.
With the real ones: tests/e2e/test_start_cluster.py.
"""

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from gllm.cli import main
from tests.cli.conftest import CHECKOUT, WITH_STAND_INS, Gllm, Run
from tests.cli.terminal import Terminal
from tests.support.marked import Mark
from tests.support.ports import free_port
from tests.support.processes import comes_true

READY = "Ctrl+C stops it."


@pytest.fixture
def first_port() -> int:
    """From where four workers a hundred apart find their ports."""
    return free_port(room=400)


@pytest.fixture
def start(gllm_of_stand_ins: Run, first_port: int, mark: Mark) -> Callable[..., Gllm]:
    def started(*args: str, **env: str) -> Gllm:
        ports = ("--port", "0", "--worker-port-range-start", str(first_port))
        return gllm_of_stand_ins("start-cluster", *ports, *args, **mark.env, **env)

    return started


def program(running: Gllm, name: str) -> psutil.Process:
    """One of the children, under its keeper."""
    word = "serve" if name == "gateway" else name
    for process in running.family():
        words = process.cmdline()
        if word in words and "keeper.py" not in " ".join(words):
            return process
    raise AssertionError(f"there is no {name}\n{running.text}")


# --- starting -----------------------------------------------------------------------------------------------------


def test_each_gpu_gets_a_worker_and_all_load_the_model(start: Callable[..., Gllm], first_port: int) -> None:
    running = start("-w", "0:1", "--load-model", "org/tiny", "--", "--max-model-len", "64")
    running.until(READY)
    for number in (0, 1):
        port = first_port + 100 * number
        assert (
            f"worker-{number}: worker-{number} takes --name worker-{number} --host 127.0.0.1 --port {port} "
            f"--engine-port {port + 10} --engine vllm --gpus "
        ) in running.text
        assert f"worker-{number}: Loading org/tiny: 100%" in running.text
        assert f"worker-{number}: ready" in running.text
    assert running.text.count("-- --max-model-len 64\n") == 2
    assert f"serves tiny at {running.url} " in running.text
    assert f"curl -N {running.url}/v1/chat/completions" in running.text
    running.interrupt()
    assert running.wait() == 0


def test_without_a_model_it_says_how_to_load_one(start: Callable[..., Gllm]) -> None:
    running = start("-w", "0")
    running.until(READY)
    url = re.findall(r"is at (\S+) with 1 worker and no model", running.text)[0]
    assert f"gllm load MODEL --url {url}" in running.text


def test_who_may_call_is_told(start: Callable[..., Gllm]) -> None:
    running = start("-w", "0")
    running.until(READY)
    assert "The gateway answers on this machine only" in running.text
    anybody = start("-w", "1", ALLOW_ANONYMOUS="true")
    anybody.until(READY)
    assert "on this machine only" not in anybody.text
    port = re.findall(r"is at http://127.0.0.1:(\d+) ", anybody.text)[0]
    addresses = {each.laddr for each in program(anybody, "gateway").net_connections() if each.status == "LISTEN"}
    assert addresses == {("0.0.0.0", int(port))}


def test_a_taken_port_is_told_and_the_next_one_used(start: Callable[..., Gllm], first_port: int) -> None:
    with socket.create_server(("127.0.0.1", first_port)), socket.create_server(("127.0.0.1", first_port + 11)):
        running = start("-w", "0")
        running.until(READY)
    assert f"Port {first_port} is taken: worker-0 gets {first_port + 1}.\n" in running.text
    assert f"Port {first_port + 11} is taken: the engine of worker-0 gets {first_port + 12}.\n" in running.text


def test_the_secret_is_on_no_command_line(start: Callable[..., Gllm]) -> None:
    running = start("-w", "0:1")
    running.until(READY)
    secrets = {process.environ()["CLUSTER_SECRET"] for process in running.family()}
    assert len(secrets) == 1
    secret = secrets.pop()
    assert len(secret) > 30
    assert not any(secret in " ".join(process.cmdline()) for process in running.family())
    assert secret not in running.text


# --- what cannot start --------------------------------------------------------------------------------------------


def test_a_worker_that_cannot_start_ends_all_with_its_words(start: Callable[..., Gllm], mark: Mark) -> None:
    running = start("-w", "0:2", STAND_IN_BROKEN="worker-1")
    assert running.wait(within_s=60) == 1
    last = running.text[running.text.index("gllm: worker-1 did not start") :].splitlines()
    assert last[0] == "gllm: worker-1 did not start: exit code 1."
    assert last[1].startswith("  | worker-1 takes --name worker-1")
    assert last[2] == "  | gllm: GPU 7 is taken."
    assert mark.processes() == []


def test_a_model_that_cannot_be_loaded_ends_all(start: Callable[..., Gllm], mark: Mark) -> None:
    running = start("-w", "0", "--load-model", "unknown")
    assert running.wait(within_s=60) == 1
    assert running.text.endswith(
        "gllm: engine did not start: exit code 1.\n  | ValueError: no such model\n"
        "  Everything that was said: .state/logs/cluster\n"
    )
    assert mark.processes() == []


def test_a_taken_port_of_the_gateway_is_told_before_anything_starts(gllm_of_stand_ins: Run, mark: Mark) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        args = ("-w", "0", "-wp", "20000", "-p", str(port))
        running = gllm_of_stand_ins("start-cluster", *args, **mark.env)
        assert running.wait(within_s=60) == 1
    assert running.text == f"gllm: Port {port} on 127.0.0.1 is taken. Stop what uses it, or add: --port {port + 1}\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["-w", "0:x"], "--workers: '0:x' is no GPU and no range of GPUs: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (["-w", "3:1"], "--workers: the range 3:1 runs backwards; write 1:3."),
        (["-w", "0:2,2"], "--workers names GPU 2 twice."),
        (["-w", "0", "1", "0"], "--workers names GPU 0 twice."),
        (["-w", "-1"], "--workers: '-1' is no GPU and no range of GPUs: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (["-w", ""], "--workers names no GPU: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (
            ["-w", "0:2", "--gpus-per-worker", "2"],
            "--workers names 3 GPUs, which cannot be shared out to workers of 2 each.",
        ),
        (["-w", "0", "--gpus-per-worker", "0"], "--gpus-per-worker must be at least 1, not 0."),
        (
            ["--launcher", "ray", "-w", "0:3"],
            "With --launcher ray, --workers is how many there shall be, or 'all', not '0:3'.",
        ),
        (
            ["--launcher", "ray", "-w", "0"],
            "With --launcher ray, --workers is how many there shall be, or 'all', not '0'.",
        ),
        (["-w", "0", "-wp", "0"], "--worker-port-range-start must be from 1 to 65535, not 0."),
        (["-w", "0", "-wp", "65530"], "No port from 65540 to 65535 is free for the engine of worker-0."),
        (["-w", "0", "-p", "70000"], "PORT must be at most 65535, not '70000'."),
        (
            ["-w", "0", "--ip", "0.0.0.0"],
            "HOST=0.0.0.0 is reachable from other machines and nothing asks callers for a key: "
            "set TENANTS_FILE, listen on 127.0.0.1, or set ALLOW_ANONYMOUS=true if that is what you want.",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    args: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["start-cluster", "-p", "0", "-wp", "20000", *args]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"gllm: {sentence}\n")
    assert list(tmp_path.iterdir()) == []


# --- ending -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_of_it(start: Callable[..., Gllm], mark: Mark, number: signal.Signals) -> None:
    running = start("-w", "0:1", "--load-model", "org/tiny")
    running.until(READY)
    assert len(mark.processes()) == 1 + 3 * 2 + 2  # each of three with its keeper; two have engines
    running.process.send_signal(number)
    assert running.wait(within_s=10) == 0
    assert mark.processes() == []
    assert "Stopping." in running.text
    assert "Traceback" not in running.text


def test_a_closed_terminal_of_which_the_shell_tells_too_is_no_haste(start: Callable[..., Gllm], mark: Mark) -> None:
    running = start("-w", "0")
    running.until(READY)
    for _ in range(3):
        running.process.send_signal(signal.SIGHUP)
        time.sleep(0.02)
    assert running.wait(within_s=10) == 0
    assert mark.processes() == []


def test_under_nohup_it_outlives_its_terminal(start: Callable[..., Gllm]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it to whom it starts
    try:
        running = start("-w", "0")
    finally:
        signal.signal(signal.SIGHUP, before)
    running.until(READY)
    running.process.send_signal(signal.SIGHUP)
    program(running, "worker-0").kill()
    running.until("worker-0 is back after ")  # so it has had the time to obey
    assert "Stopping." not in running.text


def test_an_interrupt_while_the_model_loads_leaves_nothing(start: Callable[..., Gllm], mark: Mark) -> None:
    running = start("-w", "0", "--load-model", "org/tiny", STAND_IN_LOAD_S="60")
    running.until("Loading org/tiny: 0%")
    running.interrupt()
    assert running.wait(within_s=10) == 0
    assert mark.processes() == []
    assert "Traceback" not in running.text


def test_a_second_interrupt_ends_it_at_once(start: Callable[..., Gllm], mark: Mark) -> None:
    running = start("-w", "0")
    running.until(READY)
    program(running, "gateway").suspend()  # which thus does not stop when it is told to
    running.interrupt()
    running.until("once more stops at once")
    running.interrupt()
    assert running.wait(within_s=2) == 130
    assert comes_true(lambda: mark.processes() == [], limit_s=8)


def test_kill_9_leaves_nothing(start: Callable[..., Gllm], mark: Mark) -> None:
    running = start("-w", "0:1", "--load-model", "org/tiny")
    running.until(READY)
    running.process.kill()
    running.wait()
    assert comes_true(lambda: mark.processes() == [], limit_s=8)


# --- healing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gateway", "worker-1"])
def test_one_that_dies_is_told_and_started_again(start: Callable[..., Gllm], name: str) -> None:
    running = start("-w", "0:1", "--load-model", "org/tiny")
    running.until(READY)
    others = {each: program(running, each).pid for each in ("gateway", "worker-0", "worker-1") if each != name}
    before = program(running, name)
    before.kill()
    running.until(f"{name} ended by itself: killed by SIGKILL. It is started again in 0.5 s.")
    running.until(f"{name} is back after ")
    assert program(running, name).pid != before.pid
    assert {each: program(running, each).pid for each in others} == others
    assert httpx.get(f"{running.url}/livez", trust_env=False).status_code == 200
    running.interrupt()
    assert running.wait() == 0


def test_a_gateway_that_dies_over_the_first_model_is_asked_again(start: Callable[..., Gllm]) -> None:
    running = start("-w", "0", "--load-model", "org/tiny", STAND_IN_LOAD_S="3")
    running.until("Loading org/tiny: 0%")
    program(running, "gateway").kill()
    running.until("gateway is back after ")
    running.until("serves tiny at ")


def test_an_engine_left_behind_by_a_killed_worker_is_ended(start: Callable[..., Gllm], mark: Mark) -> None:
    running = start("-w", "0", "--load-model", "org/tiny")
    running.until(READY)
    program(running, "worker-0").kill()
    running.until("worker-0 is back after ")
    assert [words for words in mark.processes() if "time.sleep" in words] == []


# --- on a terminal ------------------------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar_for_each_worker(tmp_path: Path, first_port: int, mark: Mark) -> None:
    argv = (*WITH_STAND_INS, "start-cluster", "-p", "0", "-w", "0:1", "-wp", str(first_port))
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "STAND_IN_LOAD_S": "2", **mark.env}
    with Terminal([*argv, "--load-model", "org/tiny"], env, tmp_path, columns=70) as terminal:
        half = " 50 %  loading  shard 50"
        picture = terminal.until(lambda shown: shown.count(half) == 2 and shown.endswith("Loading org/tiny"))
        *_, first, second, last = picture.splitlines()
        assert first == f"  worker-0  {'━' * 12}{'┄' * 12}  50 %  loading  shard 50"
        assert second == f"  worker-1  {'━' * 12}{'┄' * 12}  50 %  loading  shard 50"
        assert re.fullmatch(r" +\d s  Loading org/tiny", last)
        picture = terminal.until(lambda shown: READY in shown)
        assert "┄" not in picture
        assert "worker-0: Loading" not in picture  # its bar was enough
        terminal.interrupt()
        assert terminal.wait() == 0
        assert "\nStopping. " in str(terminal.picture)
    assert mark.processes() == []


def test_a_line_for_machines_stays_one(start: Callable[..., Gllm]) -> None:
    running = start("-w", "0", STAND_IN_SAYS='{"event": "request", "status": 200}')
    running.until(READY)
    assert '{"event": "request", "status": 200}' in running.text.splitlines()
