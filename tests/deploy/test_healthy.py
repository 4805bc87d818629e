import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socket import socket

import pytest

from deploy.docker import healthy


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/well": 200, "/ill": 503}[self.path])
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "code"), [("/well", 0), ("/ill", 1)])
def test_the_exit_code_says_whether_the_page_is_there(port: int, path: str, code: int) -> None:
    command = [sys.executable, "-IS", str(Path(healthy.__file__)), str(port), path]
    assert subprocess.run(command, check=False).returncode == code


def test_nobody_there_is_not_well() -> None:
    with socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not healthy.is_well(unused.getsockname()[1], "/well")


def test_who_takes_too_long_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healthy, "SECONDS", 0.05)
    with socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not healthy.is_well(silent.getsockname()[1], "/well")
