"""The commands that ask a running gateway, over real HTTP: what they send, what they show, and how they fail."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gllm.cli import main
from gllm.cli.status import lasting
from tests.cli.conftest import GLLM
from tests.cli.terminal import Terminal
from tests.support.processes import clean_environment

ORDER = {"model": "/models/qwen", "names": ["qwen"]}
READY: dict[str, Any] = {
    "name": "worker-0",
    "life": "a",
    "version": 7,
    "state": "ready",
    "engine": "vllm",
    "order": ORDER,
    "names": ["qwen"],
    "adapters": [{"name": "qwen-sql", "path": "/adapters/sql"}],
    "gpus": ["0", "1"],
    "starts": 1,
    "address": "http://127.0.0.1:8000",
    "reachable": True,
    "running": 3,
    "slots": 32,
    "since_s": 7_320.0,
}
LOADING: dict[str, Any] = {
    "name": "worker-1",
    "life": "b",
    "version": 2,
    "state": "loading",
    "engine": "vllm",
    "order": ORDER,
    "progress": {"step": "loading", "part": 0.43, "said": "Loading shards"},
    "gpus": ["2", "3"],
    "starts": 2,
    "address": "http://127.0.0.1:8100",
    "reachable": True,
    "since_s": 12.0,
}
LOST: dict[str, Any] = {
    "name": "worker-2",
    "life": "c",
    "version": 1,
    "state": "ready",
    "engine": "vllm",
    "names": ["qwen"],
    "address": "http://127.0.0.1:8200",
    "reachable": False,
    "reason": "It has not answered for 10 s.",
}


@dataclass
class Gateway:
    """Answers as it is told, and remembers what it was asked."""

    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    headers: dict[str, str] = field(default_factory=dict)
    """Of each answer, where they are not as wished."""
    stalls_s: float = 0.0
    """Behind what it has to say."""
    url: str = ""

    def will(self, what: str, answer: Any, status: int = 200) -> None:
        self.answers[what] = status, answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    def refuse(self, what: str, status: int, message: str, code: str = "") -> None:
        self.will(what, {"error": {"message": message, "type": "", "param": None, "code": code}}, status)

    def stream(self, what: str, *events: Any) -> None:
        self.will(what, b": is working\n\n" + b"".join(b"data: %s\n\n" % json.dumps(each).encode() for each in events))


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    state = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            what = f"{self.command} {self.path}"
            body = self.rfile.read(int(self.headers["content-length"] or 0))
            state.asked.append((what, json.loads(body) if body else None))
            state.keys.add(self.headers["authorization"])
            status, answer = state.answers[what]
            self.send_response(status)
            for name, value in (state.headers or {"content-type": self.headers["accept"]}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)
            self.wfile.flush()
            time.sleep(state.stalls_s)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - the names that it looks for

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("GLLM_URL", state.url)
    for name in ("GLLM_API_KEY", "CLUSTER_SECRET"):
        monkeypatch.delenv(name, raising=False)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


Told = Callable[[], tuple[str, str]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    def read() -> tuple[str, str]:
        out, err = capsys.readouterr()
        return out, err

    return read


# --- status -------------------------------------------------------------------------------------------------------


def test_status_is_a_table(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/workers", {"workers": [READY, LOADING, LOST]})
    assert main(["status"]) == 0
    assert told()[0].splitlines() == [
        "WORKER    STATE         MODEL           GPUS  RUNNING  STARTS      SINCE  REASON",
        "worker-0  ready         qwen, qwen-sql  0,1      3/32       1  2 h 2 min",
        "worker-1  loading 43 %  qwen            2,3         -       2       12 s",
        "worker-2  unreachable   qwen            -           -       0          -  It has not answered for 10 s.",
    ]


def test_one_that_was_stopped_is_not_told_of_as_if_it_were_lost(gateway: Gateway, told: Told) -> None:
    stopped = {**LOST, "state": "stopped", "names": [], "reason": "It has stopped."}
    gateway.will("GET /admin/workers", {"workers": [stopped]})
    assert main(["status"]) == 0
    assert re.split(r" {2,}", told()[0].splitlines()[1])[1] == "stopped"


def test_status_without_workers(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/workers", {"workers": []})
    assert main(["status"]) == 0
    assert told() == ("There are no workers.\n", "")


def test_status_as_json(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/workers", {"workers": [READY]})
    assert main(["status", "--json"]) == 0
    assert json.loads(told()[0])[0]["names"] == ["qwen"]


def test_a_strange_name_moves_no_cursor(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/workers", {"workers": [{**READY, "names": ["a\x1b[2Jb"]}]})
    assert main(["status"]) == 0
    assert "\x1b" not in told()[0]


def test_watching_draws_on_a_terminal_only(gateway: Gateway, told: Told) -> None:
    assert main(["status", "--watch"]) == 2
    assert told() == ("", "gllm: --watch draws on a terminal; for programs there is --json.\n")


def test_watching_shows_each_change_in_the_same_place(gateway: Gateway, tmp_path: Path) -> None:
    gateway.will("GET /admin/workers", {"workers": [READY, LOADING]})
    env = clean_environment(GLLM_URL=gateway.url)
    with Terminal([*GLLM, "status", "--watch"], env, tmp_path) as terminal:
        terminal.until(lambda shown: "43 %" in shown)
        gateway.will("GET /admin/workers", {"workers": [READY, {**LOADING, "progress": {"step": "trying"}}]})
        picture = terminal.until(lambda shown: "(trying)" in shown)
        assert picture.count("worker-1") == 1
        gateway.refuse("GET /admin/workers", 401, "The API key is not known.")
        terminal.until(lambda shown: "The API key is not known." in shown)
        assert terminal.wait() == 1


def test_watching_ends_with_an_interrupt(gateway: Gateway, tmp_path: Path) -> None:
    gateway.will("GET /admin/workers", {"workers": [READY]})
    with Terminal([*GLLM, "status", "-w"], clean_environment(GLLM_URL=gateway.url), tmp_path) as terminal:
        terminal.until(lambda shown: "worker-0" in shown)
        terminal.interrupt()
        assert terminal.wait() == 0
        assert "Traceback" not in str(terminal.picture)
        assert str(terminal.picture).endswith("\n")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (59.9, "60 s"), (60, "1 min"), (3_599, "59 min"), (3_600, "1 h 0 min"), (90_000, "1 d 1 h")],
)
def test_how_long_something_lasts(seconds: float, shown: str) -> None:
    assert lasting(seconds) == shown


# --- load ---------------------------------------------------------------------------------------------------------


def test_load_tells_how_far_each_worker_is(gateway: Gateway, told: Told) -> None:
    news = [("worker-1", "waiting"), ("worker-0", "loading"), ("worker-0", "ready"), ("worker-1", "loading")]
    events = [{"state": "running", "worker": worker, "step": step} for worker, step in news]
    gateway.stream("POST /admin/models", *events, events[-1], {"state": "done", "workers": [READY]})
    assert main(["load", "/models/qwen"]) == 0
    out, err = told()
    assert out.splitlines()[:-1] == [f"{worker}: {step}" for worker, step in news]
    assert re.fullmatch(r"/models/qwen is loaded \(after \d+\.\d s\)\.", out.splitlines()[-1])
    assert err == ""
    assert gateway.asked == [("POST /admin/models", {"model": "/models/qwen"})]


def test_load_sends_what_was_asked_for(gateway: Gateway) -> None:
    gateway.stream("POST /admin/models", {"state": "done"})
    words = "load m --name a --name b --workers worker-0 worker-1 --force --drain-seconds 5 -- --max-model-len 64"
    assert main(words.split()) == 0
    assert gateway.asked[0][1] == {
        "model": "m",
        "names": ["a", "b"],
        "args": ["--max-model-len", "64"],
        "workers": ["worker-0", "worker-1"],
        "force": True,
        "drain_s": 5.0,
    }
    assert main(["load", "m", "--count", "2"]) == 0
    assert gateway.asked[1][1] == {"model": "m", "count": 2}


def test_a_load_that_fails_is_told_with_the_engines_own_words(gateway: Gateway, told: Told) -> None:
    sentence = "worker-1 did not start: exit code 1."
    gateway.stream(
        "POST /admin/models",
        {"state": "running", "worker": "worker-1", "step": "failed", "said": "exit code 1"},
        {"state": "running", "worker": "worker-0", "step": "returned"},
        {"state": "failed", "message": sentence, "tail": ["Traceback ...", "ValueError: m is not a model"]},
    )
    assert main(["load", "m"]) == 1
    out, err = told()
    assert out == "worker-1: failed (exit code 1)\nworker-0: returned to what it served\n"
    assert err == f"gllm: {sentence}\n  | Traceback ...\n  | ValueError: m is not a model\n"


def test_a_load_whose_gateway_dies_did_not_succeed(gateway: Gateway, told: Told) -> None:
    gateway.stream("POST /admin/models", {"state": "running", "worker": "worker-0", "step": "loading"})
    assert main(["load", "m"]) == 1
    assert told()[1] == f"gllm: The gateway at {gateway.url} broke off in the middle of its answer.\n"


def test_a_load_whose_gateway_falls_silent_is_not_waited_for(
    gateway: Gateway, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gllm.cli.gateway.SILENCE_S", 0.2)
    gateway.stalls_s = 1.0
    gateway.stream("POST /admin/models", {"state": "running", "worker": "w", "step": "loading"})
    assert main(["load", "m"]) == 1
    assert told() == ("w: loading\n", f"gllm: The gateway at {gateway.url} did not answer in time.\n")


def test_a_load_while_another_one_runs(gateway: Gateway, told: Told) -> None:
    gateway.refuse("POST /admin/models", 409, "Another change of models is being carried out.", "load_in_progress")
    assert main(["load", "m"]) == 1
    assert told() == ("", "gllm: Another change of models is being carried out.\n")


ACCOUNT: dict[str, Any] = {
    "id": "all-1",
    "model": "/models/qwen",
    "names": ["qwen"],
    "outcome": "cancelled",
    "rounds": [["worker-0"], ["worker-1"], ["worker-2"]],
    "seconds": 12.34,
    "workers": [
        {"worker": "worker-0", "step": "returned"},
        {"worker": "worker-1", "step": "returned"},
        {"worker": "worker-2", "step": "waiting"},
    ],
}


def test_a_load_that_is_cancelled_is_over_when_all_have_back_what_they_served(gateway: Gateway, told: Told) -> None:
    gateway.will("DELETE /admin/swap", ACCOUNT)
    assert main(["load", "--cancel"]) == 0
    out, err = told()
    assert out == (
        "worker-0: returned to what it served\nworker-1: returned to what it served\n"
        "/models/qwen is given up (after 12.3 s).\n"
    )
    assert err == ""
    assert gateway.asked == [("DELETE /admin/swap", None)]


def test_a_cancelled_load_that_left_a_worker_without_its_model_did_not_succeed(gateway: Gateway, told: Told) -> None:
    gateway.will("DELETE /admin/swap", {**ACCOUNT, "workers": [{"worker": "worker-0", "step": "left"}]})
    assert main(["load", "--cancel"]) == 1
    assert told()[0].startswith("worker-0: could not be returned to what it served\n")


def test_where_nothing_is_being_loaded_nothing_can_be_cancelled(gateway: Gateway, told: Told) -> None:
    gateway.will("DELETE /admin/swap", {**ACCOUNT, "outcome": "done"})
    assert main(["load", "--cancel"]) == 1
    assert told() == ("", "gllm: Nothing is being loaded; the last one, /models/qwen, is done.\n")
    gateway.refuse("DELETE /admin/swap", 404, "No models were changed since this gateway started.")
    assert main(["load", "--cancel"]) == 1
    assert told() == ("", "gllm: No models were changed since this gateway started.\n")


@pytest.mark.parametrize("words", [["load"], ["load", "m", "--cancel"]], ids=" ".join)
def test_a_load_takes_a_model_or_is_cancelled(words: list[str], gateway: Gateway, told: Told) -> None:
    assert main(words) == 2
    assert told() == ("", "gllm: Give a MODEL to load, or --cancel to give up what is being loaded.\n")
    assert gateway.asked == []


# --- the others ---------------------------------------------------------------------------------------------------


def test_release_tells_of_each(gateway: Gateway, told: Told) -> None:
    gateway.will("GET /admin/workers", {"workers": [READY, {**READY, "name": "worker-1"}]})
    gateway.will("POST /admin/workers/worker-0/release", {"proved": True})
    gateway.will("POST /admin/workers/worker-1/release", {"proved": False, "note": "There is no nvidia-smi here."})
    assert main(["release", "--drain-seconds", "3"]) == 0
    assert sorted(told()[0].splitlines()) == [
        "worker-0 is released: its GPUs' memory is free.",
        "worker-1 is released: its engine is gone. There is no nvidia-smi here.",
    ]
    assert gateway.asked[1][1] == {"drain_s": 3.0}


def test_release_of_one_that_is_unknown_does_not_stop_the_others(gateway: Gateway, told: Told) -> None:
    gateway.will("POST /admin/workers/worker-0/release", {"proved": True})
    gateway.refuse("POST /admin/workers/nobody/release", 404, "No worker of this name is known here.")
    assert main(["release", "worker-0", "nobody"]) == 1
    assert told() == (
        "worker-0 is released: its GPUs' memory is free.\n",
        "gllm: nobody: No worker of this name is known here.\n",
    )


def test_drain_and_its_opposite(gateway: Gateway, told: Told) -> None:
    gateway.will("POST /admin/workers/worker-0/drain", READY)
    gateway.will("POST /admin/workers/worker-0/admit", READY)
    assert main(["drain", "worker-0"]) == 0
    assert main(["drain", "worker-0", "--undo"]) == 0
    assert told()[0] == (
        "worker-0 gets no more requests, and finishes those that it has.\nworker-0 gets requests again.\n"
    )


def test_logs_come_as_they_are(gateway: Gateway, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    gateway.will("GET /admin/workers/worker-0/logs?lines=2&follow=0", b"one\ntwo \xff\n")
    assert main(["logs", "worker-0", "-n", "2"]) == 0
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"one\ntwo \xff\n"


def test_adapters(gateway: Gateway, told: Told) -> None:
    gateway.will("POST /admin/adapters", {})
    gateway.will("DELETE /admin/adapters/sql%2Fv1", {})
    assert main(["adapters", "load", "sql", "/adapters/sql"]) == 0
    assert main(["adapters", "unload", "sql/v1"]) == 0
    assert told()[0] == "sql is loaded.\nsql/v1 is unloaded.\n"
    assert gateway.asked[0][1] == {"name": "sql", "path": "/adapters/sql"}


# --- which gateway, and who asks ----------------------------------------------------------------------------------

EACH = [
    ["status"],
    ["load", "m"],
    ["load", "--cancel"],
    ["release"],
    ["release", "worker-0"],
    ["drain", "worker-0"],
    ["logs", "worker-0"],
    ["adapters", "load", "a", "p"],
    ["adapters", "unload", "a"],
]


@pytest.mark.parametrize("command", EACH, ids=" ".join)
def test_where_nobody_answers_it_is_told(command: list[str], told: Told) -> None:
    code = main([*command, "--url", "http://127.0.0.1:9"])
    out, err = told()
    assert (code, out) == (1, "")
    assert "No gateway answers at http://127.0.0.1:9. Where is it? Give --url, or set GLLM_URL.\n" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", EACH, ids=" ".join)
def test_a_url_that_is_none_is_told(command: list[str], told: Told) -> None:
    assert main([*command, "--url", "nowhere"]) == 2
    assert told() == ("", "gllm: --url must be a URL such as http://127.0.0.1:8000, not 'nowhere'.\n")


def test_an_answer_of_something_else_is_told(gateway: Gateway, told: Told) -> None:
    for answer, status in ((b"<html>", 200), (b"<html>", 502), (b"{}", 200)):
        gateway.will("GET /admin/workers", answer, status)
        assert main(["status"]) == 1
        assert told() == ("", f"gllm: What answers at {gateway.url} is not this version of gllm.\n")


@pytest.mark.parametrize("command", EACH, ids=" ".join)
@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, {"content-type": "text/html"}),
        (302, {"location": "http://127.0.0.1:9/login"}),
        (200, {"content-encoding": "gzip"}),
    ],
    ids=["a page", "a way elsewhere", "not what it is said to be"],
)
def test_a_proxys_own_page_is_no_gateways_answer(
    gateway: Gateway, told: Told, command: list[str], status: int, headers: dict[str, str]
) -> None:
    gateway.headers = headers
    gateway.answers = defaultdict(lambda: (status, b"<html>Who are you?</html>"))
    assert main(command) == 1
    out, err = told()
    assert out == ""
    assert err.endswith(f"What answers at {gateway.url} is not this version of gllm.\n")


def test_a_key_that_is_none_is_told_and_not_shown(gateway: Gateway, told: Told) -> None:
    for key in ("gllm-sk-ключ", "gllm-sk\nX-Evil: 1"):
        assert main(["status", "--key", key]) == 2
        sentence = "The key (--key, GLLM_API_KEY, CLUSTER_SECRET) must be one line of ASCII characters."
        assert told() == ("", f"gllm: {sentence}\n")
    assert gateway.asked == []


def test_the_end_of_a_line_is_no_part_of_a_key_or_a_url(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.will("GET /admin/workers", {"workers": []})
    monkeypatch.setenv("GLLM_API_KEY", "k-1\r\n")
    assert main(["status", "--url", f" {gateway.url}\n"]) == 0
    assert gateway.keys == {"Bearer k-1"}


@pytest.mark.parametrize("command", ["load m", "release"])
@pytest.mark.parametrize("given", ["nan", "inf", "-1", "soon"])
def test_seconds_that_are_none_are_told(command: str, given: str, told: Told) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), f"--drain-seconds={given}"])
    assert ended.value.code == 2
    assert "--drain-seconds: " in told()[1]


def test_a_reader_who_has_seen_enough_is_no_failure_of_ours(gateway: Gateway) -> None:
    gateway.will("GET /admin/workers", {"workers": [READY]})
    command = [sys.executable, "-m", "gllm.cli", "status", "--url", gateway.url]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as nobody:
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_key_comes_from_a_flag_or_from_the_environment(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.will("GET /admin/workers", {"workers": []})
    seen = []
    for name in ("", "CLUSTER_SECRET", "GLLM_API_KEY"):
        if name:
            monkeypatch.setenv(name, f"of-{name}")
        main(["status"])
        seen.append(gateway.keys.pop())
    main(["status", "--key", "given"])
    seen.append(gateway.keys.pop())
    assert seen == [None, "Bearer of-CLUSTER_SECRET", "Bearer of-GLLM_API_KEY", "Bearer given"]
