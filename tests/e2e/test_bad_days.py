"""A machine has too little (files to open, room on the disk to which the gateway speaks), or stands still."""

import fcntl
import json
import os
import signal
import termios
import time
from array import array
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import Engine, GatewayProcess, comes_true
from tests.support.sockets import Raw, request
from tests.support.tenancy import signed, write_tenants

ASKED = request("/v1/completions", {"prompt": "Docker is", "max_tokens": 2})
LONG = request("/v1/completions", {"prompt": "On", "max_tokens": 1_500, "ignore_eos": True, "stream": True})

FILES = 160
CLIENTS = 60
"""That they allow."""


def test_clients_that_take_all_connections_do_not_take_the_engine(engine: Engine, logs: Path) -> None:
    argv = ("prlimit", f"--nofile={FILES}", *GatewayProcess.SERVE)
    settings = {"ENGINE_URLS": engine.url, "PROBE_INTERVAL": "0.2", "METRICS_PORT": str(free_port())}
    with running(GatewayProcess("crowded", free_port(), logs, argv, **settings)) as gateway:
        gateway.http.close()  # its connection would be one of them
        with ExitStack() as clients:
            crowd = [clients.enter_context(Raw(gateway.port)) for _ in range(2 * CLIENTS)]
            assert comes_true(lambda: sum(each.heard_from() for each in crowd) == CLIENTS, 5)
            served = [each for each in crowd if not each.heard_from()]
            for each in served:
                assert each.say(ASKED).answer()[0] == 200
            with Raw(gateway.port) as late:
                status, _, body = late.say(ASKED).answer()
                assert (status, json.loads(body)["error"]["code"]) == (503, "too_many_connections")
            assert not comes_true(lambda: "failing" in gateway.log.read_text(), 2), "several looks at the engine long"
        with Raw(gateway.port) as next_one:
            assert next_one.say(ASKED).answer()[0] == 200
        assert gateway.log.read_text().count("no more are taken (MAX_CONNECTIONS, ulimit -n)") == 1


def test_files_that_the_system_would_allow_are_used(engine: Engine, logs: Path) -> None:
    argv = ("prlimit", f"--nofile=64:{FILES}", *GatewayProcess.SERVE)
    with running(GatewayProcess("allowed", free_port(), logs, argv, ENGINE_URLS=engine.url)) as gateway:
        assert gateway.samples()["gllm_connections_most"] == CLIENTS


def test_a_gateway_that_nobody_can_hear_serves(engine: Engine, logs: Path) -> None:
    """Its words go to a disk that is full."""
    argv = ("sh", "-c", 'exec "$@" > /dev/full 2>&1', "sh", *GatewayProcess.SERVE)
    with running(GatewayProcess("unheard", free_port(), logs, argv, ENGINE_URLS=engine.url)) as gateway:
        for _ in range(3):
            assert gateway.http.post("/v1/completions", json={"prompt": "Docker is", "max_tokens": 2}).is_success
        gateway.signal(signal.SIGTERM)
        gateway.wait()


def test_a_gateway_whose_reader_has_stopped_serves_and_ends(engine: Engine, logs: Path) -> None:
    """A pager, or a terminal that is held: its pipe is full, and an error is to be told."""
    words = logs / "words"
    os.mkfifo(words)
    reader = os.open(words, os.O_RDONLY | os.O_NONBLOCK)
    argv = ("sh", "-c", f'exec "$@" > {words} 2>&1', "sh", *GatewayProcess.SERVE)
    write_tenants(logs / "read.toml", {"chat": {}})
    settings = {"ENGINE_URLS": engine.url, "TENANTS_FILE": str(logs / "read.toml")}
    try:
        with running(GatewayProcess("unread", free_port(), logs, argv, **settings)) as gateway:
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 16_384)
            for _ in range(100):
                gateway.http.post("/v1/completions", content=b"no JSON", headers=signed("chat"))
            assert comes_true(lambda: lies_in(reader) > 8_000, 5)
            (logs / "read.toml").write_text("no TOML [")
            refused = "gllm_tenants_file_refused"
            assert comes_true(lambda: gateway.http.get("/metrics").text.find(f"{refused} 1.0") > 0, 10)
            asked = {"prompt": "Docker is", "max_tokens": 2}
            assert gateway.http.post("/v1/completions", json=asked, headers=signed("chat")).is_success
            gateway.signal(signal.SIGTERM)
            assert gateway.wait() == 0
    finally:
        os.close(reader)


def lies_in(pipe: int) -> int:
    """Bytes that nobody has read."""
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


def test_a_gateway_that_stood_still_blames_nobody_for_it(logs: Path) -> None:
    """It was suspended for longer than engines may be silent and clients may take for their heads."""
    settings = {
        "GPUS": "none",
        "IDLE_TIMEOUT": "1",
        "FIRST_BYTE_TIMEOUT": "1",
        "BODY_TIMEOUT": "1",
        "WRITE_TIMEOUT": "1",
    }
    with running(GatewayProcess("paused", free_port(), logs, **settings)) as gateway, ExitStack() as clients:
        streams = [clients.enter_context(Raw(gateway.port)).say(LONG) for _ in range(4)]
        for stream in streams:
            stream.until(b"data: ")
        slow = clients.enter_context(Raw(gateway.port)).say(ASKED[:20])
        gateway.signal(signal.SIGSTOP)
        time.sleep(3)
        slow.say(ASKED[20:])
        gateway.signal(signal.SIGCONT)
        assert slow.answer()[0] == 200
        for stream in streams:
            rest = stream.until(b"0\r\n\r\n")
            assert b"data: [DONE]" in rest
            assert b'"error"' not in rest
        assert gateway.sum_of("llm_engine_errors_total") == 0
