"""The official SDK for Node against the gateway: what its programs get, errors and hang-ups included."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, clean_environment, comes_true
from tests.support.upstream import Says, Upstream, upstream

HERE = Path(__file__).parent / "node"
LIMIT_S = 60
NOT_TESTED = "*** NOT TESTED: programs for Node. {} ***"


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with the SDK beside the program. It is installed once, and again when the lock has changed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip(NOT_TESTED.format("There is no node or no npm on the PATH."))
    lock, made = HERE / "package-lock.json", HERE / "node_modules" / ".made"
    if not made.exists() or made.read_bytes() != lock.read_bytes():
        argv = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(argv, cwd=HERE, capture_output=True, text=True, timeout=180)
        if done.returncode != 0:
            pytest.skip(NOT_TESTED.format(f"The SDK cannot be installed:\n{done.stderr}"))
        made.write_bytes(lock.read_bytes())
    return node


@dataclass(frozen=True)
class Program:
    node: str
    gateway: GatewayProcess

    def argv(self, use: str) -> list[str]:
        return [self.node, str(HERE / "sdk.mjs"), f"{self.gateway.url}/v1", use]

    def says(self, use: str, **environment: str) -> Any:
        done = subprocess.run(
            self.argv(use), capture_output=True, text=True, timeout=LIMIT_S, env=clean_environment(**environment)
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def staying(self, use: str) -> Iterator[list[Any]]:
        """What it has said when it has turned away from its answer. Within the block it lives on."""
        with subprocess.Popen(
            self.argv(use), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment()
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                said = []
                while {"left": True} not in said:
                    said.append(json.loads(process.stdout.readline()))
                yield said[:-1]
                assert process.poll() is None
                process.stdin.close()
                assert process.wait(LIMIT_S) == 0
            finally:
                process.kill()


@pytest.fixture(scope="module")
def program(node: str, gateway: GatewayProcess) -> Program:
    return Program(node, gateway)


@pytest.fixture(scope="module")
def told() -> Iterator[Upstream]:
    """An engine that answers as it is told."""
    with upstream(free_port()) as engine:
        yield engine


@pytest.fixture(scope="module")
def at_fault(node: str, told: Upstream, logs: Path) -> Iterator[Program]:
    """Before that engine."""
    gateway = GatewayProcess("before-faults", free_port(), logs, ENGINE_URLS=told.url, PROBE_INTERVAL="0.2")
    with running(gateway):
        yield Program(node, gateway)


@pytest.fixture(autouse=True)
def _anew(told: Upstream) -> None:
    told.says.clear()
    told.asked.clear()


# --- answers ----------------------------------------------------------------------------------------------------------


def test_a_question_is_answered_whole_and_streamed_alike(program: Program) -> None:
    whole, stream = program.says("completion"), program.says("stream")
    assert "batch" in whole["text"]
    assert whole["request_id"].startswith("req-")
    assert stream["text"] == whole["text"] == program.says("helper")["text"]
    assert stream["pieces"] > 10
    assert stream["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] > 5


def test_models_are_listed_and_texts_become_vectors(program: Program) -> None:
    said = program.says("others")
    assert (said["models"], said["one"]) == ([Engine.MODEL], Engine.MODEL)
    assert [size > 64 for size in said["vectors"]] == [True, True]


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_wrong_request_is_an_error_of_the_right_class(program: Program) -> None:
    said = program.says("refusals")
    assert {name: (each["class"], each["status"], each["code"], each["param"]) for name, each in said.items()} == {
        "misspelt": ("BadRequestError", 400, "unsupported_parameter", "temprature"),
        "unknown": ("NotFoundError", 404, "model_not_found", "model"),
        "elsewhere": ("NotFoundError", 404, "not_found", None),
    }
    assert all(each["requestID"].startswith("req-") for each in said.values())


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (Says(500), 502, "engine_failed"),
        (Says(503, headers={"retry-after": "1"}), 503, "engine_busy"),
        (Says(404, b'{"detail":"Not Found"}'), 501, "not_supported_by_engine"),
    ],
    ids=["fails", "is busy", "does not offer it"],
)
def test_an_engine_that_does_not_answer_is_an_internal_server_error(
    at_fault: Program, told: Upstream, said: Says, status: int, code: str
) -> None:
    told.says[:] = [said] * 9
    error = at_fault.says("refused")
    assert (error["class"], error["status"], error["code"]) == ("InternalServerError", status, code)


def test_a_wrong_key_and_a_spent_limit_have_classes_of_their_own(
    node: str, told: Upstream, logs: Path, tmp_path: Path
) -> None:
    tenants = tmp_path / "tenants.toml"
    tenants.write_text("")
    argv = [*GatewayProcess.SERVE[:-1], "keys", "new", "research", "--file", str(tenants), "--requests-per-minute", "1"]
    made = subprocess.run(argv, check=True, capture_output=True, text=True, env=clean_environment())
    keyed = GatewayProcess("keyed-for-node", free_port(), logs, ENGINE_URLS=told.url, TENANTS_FILE=str(tenants))
    with running(keyed):
        program = Program(node, keyed)
        error = program.says("refused")
        assert (error["class"], error["status"], error["code"]) == ("AuthenticationError", 401, "invalid_api_key")
        key = made.stdout.strip()
        assert "answered" in program.says("refused", KEY=key)
        error = program.says("refused", KEY=key)
        assert (error["class"], error["status"], error["code"]) == ("RateLimitError", 429, "request_rate")


def test_it_asks_again_when_it_is_told_to(at_fault: Program, told: Upstream) -> None:
    told.says[:] = [Says(503, headers={"retry-after": "1"})]
    said = at_fault.says("retried")
    assert said["text"] == "Hello."
    assert said["waited_ms"] >= 1_000
    assert len(told.asked) == 2


def test_a_stream_that_breaks_off_is_an_error_and_no_short_answer(at_fault: Program, told: Upstream) -> None:
    head = {"content-type": "text/event-stream", "content-length": "9999", "connection": "close"}
    chunk = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
    told.says[:] = [Says(200, chunk, head)] * 2
    said = at_fault.says("broken")
    assert said["text"] == "Hel"
    for error in (said["error"], said["ofHelper"]):
        assert (error["class"], error["code"]) == ("APIError", "engine_interrupted")


# --- hang-ups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["left", "aborted", "late"])
def test_who_turns_away_ends_the_engines_work(program: Program, engine: Engine, use: str) -> None:
    assert comes_true(lambda: engine.at_work() == 0, 5)
    aborted = engine.aborted()
    with program.staying(use) as said:
        assert comes_true(lambda: (engine.aborted(), engine.at_work()) == (aborted + 1, 0), 5)
    assert [each["class"] for each in said] == (["APIConnectionTimeoutError"] if use == "late" else [])
