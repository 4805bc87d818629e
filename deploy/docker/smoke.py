"""`make compose-smoke`: our own services of docker-compose.yml, built, started, asked and stopped for real.

With Docker by Compose itself. With podman, or a Docker without Compose, by plain commands that say of each service
what the file says; of the images of others only Redis takes part then, and only if it can be had. Where there is no
container engine, it says so and is no failure.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.docker.services import CHECKOUT, Service, run_arguments, services

PROJECT = "gllm-smoke"
SERVED = ("redis", "engine", "gateway")
"""In the order of their start; the last one is asked."""

HEALTHY_WITHIN_S = 300.0
ANSWER_WITHIN_S = 60.0
PULLED_WITHIN_S = 180.0
BUILD_FLAGS = shlex.split(os.environ.get("BUILD_FLAGS", ""))
"""For what only this machine's build needs, such as `--network host`."""


class NotTested(Exception):
    """Nothing is known to be wrong: this machine cannot try it."""


class Failed(Exception):
    pass


# --- container engines ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    command: str

    def run(self, *arguments: str, limit_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.command, *arguments],
            cwd=CHECKOUT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def do(self, *arguments: str, limit_s: float = 120) -> str:
        done = self.run(*arguments, limit_s=limit_s)
        if done.returncode:
            raise Failed(f"{self.command} {' '.join(arguments[:2])}: {_end_of(done)}")
        return done.stdout.strip()

    @property
    def has_compose(self) -> bool:
        """podman's is another program's, and its health checks wait for systemd."""
        return self.command == "docker" and self.run("compose", "version").returncode == 0


def engine_here() -> Engine:
    for command in ("docker", "podman"):
        if shutil.which(command) and (found := Engine(command)).run("info").returncode == 0:
            return found
    raise NotTested("there is no container engine here (docker or podman)")


def _end_of(done: subprocess.CompletedProcess[str], lines: int = 12) -> str:
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-lines:])


def need_base(engine: Engine) -> None:
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (CHECKOUT / "Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    if not can_be_had(engine, base[1]):
        raise NotTested(f"{base[1]}, which the images stand on, cannot be had here")
    started = engine.run("run", "--rm", "--network=none", base[1], "true")
    if started.returncode:
        raise NotTested(f"{engine.command} can start no container here: {_end_of(started, 1)}")


def can_be_had(engine: Engine, image: str) -> bool:
    try:
        here = engine.run("image", "inspect", image).returncode == 0
        return here or engine.run("pull", "--quiet", image, limit_s=PULLED_WITHIN_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False


# --- by Compose -------------------------------------------------------------------------------------------------------


@contextmanager
def up_by_compose(engine: Engine, port: int) -> Iterator[Callable[[], None]]:
    compose = ("compose", "--project-name", PROJECT)
    try:
        up = ("up", "--detach", "--build", "--wait", "--wait-timeout", str(int(HEALTHY_WITHIN_S)), "gateway")
        done = engine.run(*compose, *up, limit_s=1800, PORT=str(port), GATEWAY_BIND="127.0.0.1")
        if done.returncode:
            raise Failed(f"{_end_of(done)}\n{_end_of(engine.run(*compose, 'logs', '--tail', '20'), 60)}")
        yield lambda: _check(engine.run(*compose, "stop", "gateway"))
    finally:
        engine.run(*compose, "down", "--volumes", "--timeout", "5")


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise Failed(_end_of(done))


# --- by plain commands ------------------------------------------------------------------------------------------------


@contextmanager
def up_by_hand(engine: Engine, port: int) -> Iterator[Callable[[], None]]:
    known = services({**os.environ, "GATEWAY_BIND": "127.0.0.1"})
    served = [name for name in SERVED if name != "redis" or can_be_had(engine, known["redis"]["image"])]
    if "redis" not in served:
        print(f"without Redis: {known['redis']['image']} cannot be had here")
        known["gateway"]["environment"].pop("REDIS_URL")
    for name in ("gateway", "engine"):
        _build(engine, name, known[name])
    try:
        engine.do("network", "create", PROJECT)
        _preflight(engine, known["preflight"])
        for name in served:
            published = [f"--publish=127.0.0.1:{port}:8000"] if name == "gateway" else []
            engine.do("run", "--detach", f"--name={_of(name)}", *published, *run_arguments(name, known[name], PROJECT))
        for name in served:
            _await_health(engine, name, known[name])
        yield lambda: _stop(engine, "gateway", known["gateway"])
    finally:
        _sweep(engine, known)


def _of(name: str) -> str:
    return f"{PROJECT}-{name}"


def _build(engine: Engine, name: str, service: Service) -> None:
    build, began = service["build"], time.monotonic()
    format_ = ["--format=docker"] if engine.command == "podman" else []  # the other has no health checks
    arguments = [f"--build-arg={key}={value}" for key, value in build["args"].items() if value]
    engine.do(
        *("build", *format_, *BUILD_FLAGS, *arguments, f"--target={build['target']}", f"--tag={service['image']}", "."),
        limit_s=1800,
    )
    size = int(engine.do("image", "inspect", "--format={{.Size}}", service["image"]))
    print(f"built {service['image']} in {time.monotonic() - began:.0f} s: {size / 1e6:.0f} MB")


def _preflight(engine: Engine, service: Service) -> None:
    """A wrong value ends the start with its name; right ones leave a secret for all."""
    name, arguments = _of("preflight"), run_arguments("preflight", service, PROJECT)
    wrong = engine.run("run", "--rm", f"--name={name}", "--env=QUEUE_CAPACITY=many", *arguments)
    if wrong.returncode != 2 or "QUEUE_CAPACITY must be a whole number, not 'many'." not in wrong.stderr:
        raise Failed(f"a wrong value was not refused: {wrong.returncode}, {_end_of(wrong)}")
    print("refused:", wrong.stderr.splitlines()[0])
    engine.do("run", "--rm", f"--name={name}", *arguments)


def _await_health(engine: Engine, name: str, service: Service) -> None:
    test, began = service["healthcheck"]["test"][1:], time.monotonic()
    while engine.run("exec", _of(name), *map(str, test)).returncode:
        if time.monotonic() - began > HEALTHY_WITHIN_S:
            raise Failed(f"{name} is not healthy: {_end_of(engine.run('logs', '--tail', '20', _of(name)))}")
        time.sleep(0.5)
    print(f"{name} is healthy")


def _stop(engine: Engine, name: str, service: Service) -> None:
    grace = str(int(sum(map(float, re.findall(r"[\d.]+", service["stop_grace_period"])))))
    engine.do("stop", "--time", grace, _of(name))
    code = engine.do("inspect", "--format={{.State.ExitCode}}", _of(name))
    if code != "0":
        raise Failed(f"{name} ended with {code} when it was told to stop")


def _sweep(engine: Engine, known: Mapping[str, Service]) -> None:
    for name in (*reversed(SERVED), "preflight"):
        engine.run("rm", "--force", "--volumes", _of(name))
    engine.run("network", "rm", PROJECT)
    named = {each.partition(":")[0] for name in (*SERVED, "preflight") for each in known[name].get("volumes", ())}
    for volume in named:
        engine.run("volume", "rm", f"{PROJECT}-{volume}")


# --- a client ---------------------------------------------------------------------------------------------------------


def ask(port: int) -> str:
    """The answer to one streamed question, whole."""
    body = {"messages": [{"role": "user", "content": "What is Docker?"}], "max_tokens": 16, "stream": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=ANSWER_WITHIN_S) as answer:
        events = [line.removeprefix(b"data: ") for line in answer.read().splitlines() if line.startswith(b"data: ")]
    if events[-1:] != [b"[DONE]"]:
        raise Failed(f"the stream broke off: {events[-1:]}")
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(each["delta"].get("content") or "" for each in choices)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    try:
        engine, port = engine_here(), free_port()
        by_compose = engine.has_compose
        print(f"with {engine.command}{' compose' if by_compose else ''}", flush=True)
        need_base(engine)
        with (up_by_compose if by_compose else up_by_hand)(engine, port) as stop_gateway:
            print(f"answered: {ask(port)!r}")
            stop_gateway()
            print("the gateway ended with 0 when it was told to stop")
    except NotTested as reason:
        print(f"*** NOT TESTED: the images and docker-compose.yml; {reason} ***")
    except (Failed, OSError, subprocess.TimeoutExpired) as reason:
        print(f"failed: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
