"""`gllm serve` with a stand-in for vLLM: everything else is real."""

import json
import os
import re
import signal
import socket
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.cli.conftest import Run, chat

pytestmark = pytest.mark.usefixtures("fake_vllm")
SERVE = ("serve", "--engine", "vllm", "--port", "0")


def test_serves_until_interrupted(gllm: Run) -> None:
    running = gllm(*SERVE)
    running.until("Ctrl+C stops it.")
    assert "engine-0: INFO Loading weights" in running.text
    assert f"curl -N {running.url}/v1/chat/completions" in running.text
    answer = chat(running.url, "Hi")
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hello from the engine."
    family = running.family()
    assert len(family) == 2  # keeper and engine
    running.interrupt()
    assert running.wait() == 0
    assert not any(process.is_running() for process in family)


def test_sigterm_is_a_clean_stop_too(gllm: Run) -> None:
    running = gllm(*SERVE)
    running.until("Ctrl+C stops it.")
    running.process.send_signal(signal.SIGTERM)
    assert running.wait() == 0


def test_a_stop_waits_for_running_answers(gllm: Run) -> None:
    running = gllm(*SERVE, FAKE_ANSWER_S="1.5")
    running.until("Ctrl+C stops it.")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(chat(running.url, "Hi")))
    asking.start()
    running.until_engine_says("Asked to chat")
    running.interrupt()
    assert running.wait() == 0
    asking.join()
    assert [answer.status_code for answer in answers] == [200]


def test_a_second_interrupt_stops_at_once(gllm: Run) -> None:
    running = gllm(*SERVE, FAKE_ANSWER_S="30")
    running.until("Ctrl+C stops it.")
    family = running.family()

    cut_off: list[httpx.HTTPError] = []

    def ask() -> None:
        try:
            chat(running.url, "Hi")
        except httpx.HTTPError as error:
            cut_off.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    running.until_engine_says("Asked to chat")
    running.interrupt()
    running.until("once more stops at once")
    running.interrupt()
    assert running.wait(within_s=2) == 130
    asking.join()
    assert cut_off
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_an_interrupt_while_the_engine_loads_leaves_nothing(gllm: Run) -> None:
    running = gllm(*SERVE, FAKE_LOAD_S="600")
    running.until("Loading weights")
    family = running.family()
    running.interrupt()
    assert running.wait() == 0
    assert family
    assert not any(process.is_running() for process in family)
    assert "Traceback" not in running.text


def test_kill_9_leaves_no_engine(gllm: Run) -> None:
    running = gllm(*SERVE)
    running.until("Ctrl+C stops it.")
    family = running.family()
    running.process.kill()
    running.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_an_engine_that_cannot_start_is_told_in_its_own_words(gllm: Run) -> None:
    running = gllm(*SERVE, "--model", "no/such-model")
    assert running.wait(within_s=60) == 1
    said = running.text[running.text.index("gllm: ") :].splitlines()
    last = [line for line in said if "is taken; trying the next" not in line]  # by somebody else on this machine
    assert last[:3] == [
        "gllm: engine-0 did not start: exit code 1.",
        "  | INFO Loading weights",
        "  | ValueError: no/such-model is not a model",
    ]


def test_several_engines_that_cannot_start_are_one_failure(gllm: Run) -> None:
    running = gllm(*SERVE, "--model", "no/such-model", "--replicas", "3")
    assert running.wait(within_s=60) == 1
    assert "did not start: exit code 1." in running.text.partition("gllm: ")[2]


def test_servers_that_do_not_answer_yet_are_told_and_waited_for(gllm: Run) -> None:
    running = gllm("serve", "--engine-url", "http://127.0.0.1:9", "--port", "0")
    running.until("Nothing answers at http://127.0.0.1:9 yet.")
    assert httpx.get(f"{running.url}/readyz", trust_env=False).status_code == 503
    running.interrupt()
    assert running.wait() == 0


def test_what_is_logged_as_json_is_json_throughout(gllm: Run) -> None:
    running = gllm(*SERVE, "--log-format", "json", "--log-level", "debug", APP_NAME="x")
    running.until("Ctrl+C stops it.")
    running.interrupt()
    assert running.wait() == 0
    lines = [json.loads(line) for line in running.text.splitlines() if line.startswith("{")]
    assert {"event": "log", "level": "warning", "logger": "gllm.settings"}.items() <= lines[0].items()
    assert lines[0]["message"] == "APP_NAME has no effect: this product has its own name."


def test_a_taken_port_is_told_before_a_model_is_loaded(gllm: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        running = gllm("serve", "--engine", "vllm", "--port", str(port))
        assert running.wait(within_s=60) == 1
    assert running.text == (f"gllm: Port {port} on 127.0.0.1 is taken. Stop what uses it, or add: --port {port + 1}\n")


def test_a_taken_port_for_metrics_is_told_before_a_model_is_loaded(gllm: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        running = gllm(*SERVE, METRICS_PORT=str(port))
        assert running.wait(within_s=60) == 1
    assert (
        running.text == f"gllm: Port {port} on 127.0.0.1 is taken. Stop what uses it, or set METRICS_PORT={port + 1}\n"
    )


def test_where_machines_ask_is_told(gllm: Run) -> None:
    running = gllm(*SERVE, METRICS_PORT="0")
    running.until("Metrics and probes, for machines: http://127.0.0.1:")
    url = re.findall(r"for machines: (\S+)\n", running.text)[0]
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200
    running.interrupt()
    assert running.wait() == 0


def test_an_engine_that_runs_elsewhere_is_used_and_left_alone(gllm: Run) -> None:
    other = gllm(*SERVE)
    other.until("Ctrl+C stops it.")
    engine = httpx.get(f"{other.url}/v1/models", trust_env=False).json()["data"][0]["id"]
    running = gllm("serve", "--engine-url", other.url, "--port", "0")
    running.until("Ctrl+C stops it.")
    assert f"serves {engine} at" in running.text
    assert running.family() == []
    running.interrupt()
    assert running.wait() == 0
    assert chat(other.url, "Hi").status_code == 200


def test_a_vllm_that_nobody_has_tried_is_told_once_and_started(gllm: Run, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    metadata = environment / "lib" / "python3.11" / "site-packages" / "vllm-0.99.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Name: vllm\nVersion: 0.99.1\n")
    (environment / "bin").mkdir()
    (tmp_path / "vllm").rename(environment / "bin" / "vllm")
    running = gllm(*SERVE, "--replicas", "2", PATH=f"{environment / 'bin'}:{os.environ['PATH']}")
    running.until("Ctrl+C stops it.")
    assert running.text.count("vLLM 0.99.1 is new to this gateway") == 1
    running.interrupt()
    assert running.wait() == 0
