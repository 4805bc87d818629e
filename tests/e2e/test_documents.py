"""Every example in the documents is run: a fenced block after `<!-- run: gateway -->`, `tenants`, `library`,
`several` (which starts several processes), `start-cluster` (which starts one) or `cluster`."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import ROOT, Engine, GatewayProcess, Server, Site, clean_environment, comes_true
from tests.support.redis_server import redis_server

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/**/*.md")])
ADDRESS = re.compile(r"(localhost|127\.0\.0\.1):(8000|5333)")
_BLOCK = re.compile(
    r"(?:<!-- run: (?P<mark>gateway|tenants|library|several|start-cluster|cluster) -->\n)?"
    r"^```(?P<language>bash|sh|python)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
_COMMANDS = f"""
curl() {{ command curl --fail-with-body --silent --show-error --max-time 60 "$@"; }}
gllm() {{ {shlex.join(GatewayProcess.SERVE[:-1])} "$@"; }}
"""
"""As in the document, but a refusal is a failure; and `gllm` is this one."""


@dataclass(frozen=True)
class Example:
    where: str
    language: str
    code: str
    needs: str | None
    """A gateway that lets everybody in, or one that asks for keys; or none, and a checkout to stand in."""

    def command(self, url: str) -> list[str]:
        code = ADDRESS.sub(url.removeprefix("http://"), self.code)
        if self.language == "python":
            return [sys.executable, "-c", code]
        return ["bash", "-euo", "pipefail", "-c", _COMMANDS + code]


def examples() -> list[Example]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for block in _BLOCK.finditer(text):
            where = f"{document.relative_to(ROOT)}:{text.count(chr(10), 0, block.start('language')) + 1}"
            found.append(Example(where, block["language"], block["code"], block["mark"]))
    return found


EXAMPLES = examples()


def that_need(what: str) -> pytest.MarkDecorator:
    found = [each for each in EXAMPLES if each.needs == what]
    return pytest.mark.parametrize("example", found, ids=[each.where for each in found])


def run(example: Example, url: str, folder: Path, within_s: float = 60, **env: str) -> None:
    done = subprocess.run(
        example.command(url), capture_output=True, text=True, timeout=within_s, env=clean_environment(**env), cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert '"error"' not in done.stdout


@that_need("gateway")
def test_an_example_does_what_it_shows(gateway: GatewayProcess, example: Example, tmp_path: Path) -> None:
    run(example, gateway.url, tmp_path, GLLM_URL=gateway.url)


@dataclass(frozen=True)
class Checkout:
    """As after `make setup`, with a gateway that asks for keys, and one of them."""

    folder: Path
    gateway: GatewayProcess
    key: str


@pytest.fixture(scope="module")
def checkout(engine: Engine, logs: Path) -> Iterator[Checkout]:
    folder = logs / "checkout"
    command = folder / ".venv" / "bin" / "gllm"
    command.parent.mkdir(parents=True)
    python, option, script, _ = GatewayProcess.SERVE
    command.write_text(f"#!/bin/sh\nexec {python} {option} '{script}' \"$@\"\n")
    command.chmod(0o755)
    new = [str(command), "keys", "new", "somebody", "--file", "tenants.toml"]
    made = subprocess.run(new, check=True, capture_output=True, text=True, env=clean_environment(), cwd=folder)
    settings = {"ENGINE_URLS": engine.url, "TENANTS_FILE": str(folder / "tenants.toml")}
    with running(GatewayProcess("documents", free_port(), logs, **settings)) as gateway:
        yield Checkout(folder, gateway, made.stdout.strip())


@that_need("tenants")
def test_an_example_with_keys_does_what_it_shows(checkout: Checkout, example: Example) -> None:
    run(example, checkout.gateway.url, checkout.folder, GLLM_API_KEY=checkout.key)


@that_need("library")
def test_an_example_that_starts_its_own_engines_does_what_it_shows(example: Example) -> None:
    run(example, "", ROOT)


@that_need("several")
def test_an_example_of_several_processes_does_what_it_shows(
    checkout: Checkout, example: Example, engine: Engine, tmp_path: Path
) -> None:
    port, first = free_port(), free_port()
    with redis_server(tmp_path) as redis:
        code = example.code.replace("redis://localhost:6379", redis.url).replace("http://localhost:8101", engine.url)
        argv = ["bash", "-c", "exec env " + code.replace("9100", str(first))]
        env = clean_environment(PORT=str(port))
        with running(Server("several", argv, port, tmp_path / "log", env, checkout.folder), "/livez") as gateway:
            sites = [Site(first + number) for number in range(2)]
            assert comes_true(lambda: all(site.answers("/readyz") for site in sites), 60)
            assert comes_true(lambda: f"2 gateway processes share {gateway.url}" in gateway.log.read_text(), 5)
            asked = {"prompt": "Docker is", "max_tokens": 2}
            assert gateway.http.post("/v1/completions", json=asked).status_code == 200
            assert [site.sum_of("gllm_replica_slots") for site in sites] == [16, 16]
            gateway.signal(signal.SIGTERM)
            assert gateway.wait(30) == 0


@pytest.fixture(scope="module")
def cluster(logs: Path) -> Iterator[str]:
    """Where the one listens that the README starts, at ports of its own."""
    (example,) = [each for each in EXAMPLES if each.needs == "start-cluster"]
    port, first = free_port(), free_port()
    code = example.code.replace("--port 5333", f"--port {port}").replace("8200", str(first))
    argv = ["bash", "-c", "exec " + code]
    started = Server("cluster of the README", argv, port, logs / "readme-cluster.log", clean_environment(), ROOT)
    try:
        said = started.log.read_text
        assert comes_true(lambda: "Ctrl+C stops it." in said() or not started.running, 240), started.tail()
        assert started.running, started.tail()
        yield started.url
    finally:
        started.end()


@pytest.mark.timeout(400)
@that_need("cluster")
def test_an_example_for_a_cluster_does_what_it_shows(cluster: str, example: Example) -> None:
    run(example, cluster, ROOT, within_s=240)


def test_no_example_that_talks_to_a_gateway_escapes() -> None:
    assert [each.where for each in EXAMPLES if ADDRESS.search(each.code) and not each.needs] == []
    assert sum(each.where.startswith("README.md") for each in EXAMPLES if each.needs) >= 4
