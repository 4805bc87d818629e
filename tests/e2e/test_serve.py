"""`gllm serve` with an engine of its own: what it starts it ends, however it ends itself."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import GatewayProcess, alive, comes_true
from tests.support.sockets import Raw, request

ENDLESS = request(
    "/v1/completions", {"prompt": "On and on", "max_tokens": 1_900, "ignore_eos": True, "stream": True, "n": 2}
)


def owner(logs: Path, name: str) -> GatewayProcess:
    port = str(free_port())
    return GatewayProcess(name, free_port(), logs, ENGINE_PORT_START=port, GPUS="none", DRAIN_SECONDS="20")


@pytest.fixture(scope="module")
def own(logs: Path) -> Iterator[GatewayProcess]:
    with running(owner(logs, "own")) as gateway:
        yield gateway


def gone(pids: set[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def engine_pid(gateway: GatewayProcess) -> int:
    """Of the two below the gateway, the keeper and the engine, the lower one."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in gateway.children()}
    (pid,) = (pid for pid, command in commands.items() if b"keeper.py" not in command)
    return pid


def test_it_says_where_it_is_and_how_to_talk_to_it(own: GatewayProcess) -> None:
    assert comes_true(lambda: f"serves demo at {own.url} " in own.log.read_text(), 5)
    assert f"curl -N {own.url}/v1/chat/completions" in own.log.read_text()


def test_an_engine_that_dies_is_started_again_and_serves(own: GatewayProcess) -> None:
    dead = engine_pid(own)
    os.kill(dead, signal.SIGKILL)
    assert comes_true(lambda: own.http.get("/readyz").status_code == 503, 5)
    own.await_ready()
    assert own.http.post("/v1/completions", json={"prompt": "Docker is", "max_tokens": 2}).status_code == 200
    assert engine_pid(own) != dead


def test_asked_to_stop_it_lets_streams_finish_and_ends_with_0(own: GatewayProcess) -> None:
    family = own.children()
    with Raw(own.port, limit_s=30) as client, Raw(own.port) as whole:
        client.say(ENDLESS.replace(b"1900", b" 300"))
        whole.say(request("/v1/completions", {"prompt": "On", "max_tokens": 100, "ignore_eos": True}))
        client.until(b"data: ")
        own.signal(signal.SIGTERM)
        assert comes_true(lambda: not own.answers("/readyz"), 2), "it still asks for work"
        assert own.running
        rest = client.until(b"0\r\n\r\n")
        assert b"data: [DONE]" in rest
        assert b'"error"' not in rest
        assert whole.answer()[0] == 200
    assert own.wait(limit_s=15) == 0
    assert gone(family)


def test_asked_twice_it_stops_at_once_and_leaves_no_engine(logs: Path) -> None:
    with running(owner(logs, "twice")) as gateway, Raw(gateway.port) as client:
        family = gateway.children()
        client.say(ENDLESS).until(b"data: ")
        gateway.signal(signal.SIGINT)
        assert comes_true(lambda: b"Stopping" in gateway.log.read_bytes(), 5)
        assert gateway.running
        gateway.signal(signal.SIGINT)
        assert gateway.wait(limit_s=2) == 130
        assert comes_true(lambda: gone(family), 15)


def test_killed_it_leaves_no_engine(logs: Path) -> None:
    with running(owner(logs, "killed")) as gateway, Raw(gateway.port) as client:
        family = gateway.children()
        assert len(family) >= 2
        client.say(ENDLESS).until(b"data: ")
        gateway.kill()
        assert comes_true(lambda: gone(family), 15)
