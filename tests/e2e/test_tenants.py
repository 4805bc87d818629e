"""Tenants on real processes: a key is made, works, is revoked; the file is spoilt and mended; nothing is restarted."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import GatewayProcess, clean_environment, comes_true
from tests.support.upstream import Upstream, upstream

PROMPTLY_S = 2.0
GLLM = GatewayProcess.SERVE[:-1]


@dataclass(frozen=True)
class Keyed:
    gateway: GatewayProcess
    engine: Upstream
    file: Path

    def keys(self, *args: str) -> str:
        argv = [*GLLM, "keys", *args, "--file", str(self.file)]
        return subprocess.run(argv, check=True, capture_output=True, text=True, env=clean_environment()).stdout.strip()

    def ask(self, key: str) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        return self.gateway.http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})

    def taken(self, key: str) -> bool:
        status = self.ask(key).status_code
        assert status in (200, 401, 429)  # the last for those who go on trying, as these tests do
        return status == 200

    def is_taken(self, key: str) -> float:
        return comes_true(lambda: self.taken(key), PROMPTLY_S)

    def is_refused(self, key: str) -> float:
        return comes_true(lambda: not self.taken(key), PROMPTLY_S)

    def refused(self) -> float:
        return self.gateway.samples()["gllm_tenants_file_refused"]


@pytest.fixture(scope="module")
def keyed(logs: Path) -> Iterator[Keyed]:
    folder = logs / "tenants"
    folder.mkdir()
    file, port = folder / "tenants.toml", free_port()
    file.write_text('# Ours\n[[tenant]]\nname = "operators"\nadmin = true\n')
    settings = {"ENGINE_URLS": f"http://127.0.0.1:{port}", "TENANTS_FILE": str(file), "LOG_LEVEL": "debug"}
    gateway = GatewayProcess("keyed", free_port(), logs, HOST="0.0.0.0", **settings)
    with upstream(port) as engine, running(gateway):
        yield Keyed(gateway, engine, file)


def test_a_key_works_soon_after_it_was_made_and_is_refused_soon_after_it_was_revoked(keyed: Keyed) -> None:
    key = keyed.keys("new", "research", "--label", "laptop")
    assert keyed.is_taken(key)
    assert not keyed.taken(f"{key}x")
    assert keyed.gateway.http.get("/v1/models").status_code == 401
    (listed,) = [line for line in keyed.keys("list").splitlines() if "laptop" in line]
    keyed.keys("revoke", listed.split()[0])
    assert keyed.is_refused(key)
    assert keyed.file.read_text().startswith("# Ours\n")


def test_a_spoilt_file_keeps_the_old_keys_until_it_is_mended(keyed: Keyed) -> None:
    key = keyed.keys("new", "night", "--priority", "batch")
    assert keyed.is_taken(key)
    good = keyed.file.read_text()
    keyed.file.write_text(good.replace("priority", "prioritee"))
    assert comes_true(lambda: keyed.refused() == 1, PROMPTLY_S)
    line = good[: good.index("priority")].count("\n") + 1
    told = f"{keyed.file}, line {line}: prioritee is not a field that is known here (did you mean priority?)."
    assert comes_true(lambda: told in keyed.gateway.log.read_text(), PROMPTLY_S)
    assert keyed.taken(key)
    keyed.file.unlink()
    assert comes_true(lambda: "No such file" in keyed.gateway.log.read_text(), PROMPTLY_S)
    assert keyed.gateway.log.read_text().count(told) == 1
    assert keyed.taken(key)
    keyed.file.write_text(good)
    assert comes_true(lambda: keyed.refused() == 0, PROMPTLY_S)
    assert keyed.taken(key)


def test_no_process_writes_a_key_down_and_no_engine_sees_one(keyed: Keyed) -> None:
    key = keyed.keys("new", "canary")
    assert keyed.is_taken(key)
    for path in ("/v1/models", "/metrics", "/health", "/nope", "/v1/models/nope"):
        keyed.gateway.http.get(path, headers={"x-api-key": key})
    assert not keyed.taken(key[:-1])
    secret = key[5:25]
    last = keyed.ask(key).headers["x-request-id"]
    assert comes_true(lambda: last in keyed.gateway.log.read_text(), PROMPTLY_S)
    assert '"tenant":"canary"' in keyed.gateway.log.read_text()
    assert keyed.engine.heads
    for text in (keyed.gateway.log.read_text(), "".join(keyed.engine.heads), keyed.file.read_text()):
        assert secret not in text
    assert secret not in keyed.gateway.http.get("/metrics").text


@pytest.mark.parametrize(("text", "why"), [("", ": there is no [[tenant]]"), ("[[tenant]]\n", ", line 1: name is")])
def test_a_bad_file_stops_the_start(logs: Path, text: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "tenants.toml"
    file.write_text(text)
    settings = {"ENGINE_URLS": "http://127.0.0.1:9", "TENANTS_FILE": str(file)}
    gateway = GatewayProcess("bad", free_port(), tmp_path, **settings)
    assert gateway.wait() == 2
    assert gateway.log.read_text().startswith(f"gllm: TENANTS_FILE: {file}{why}")
    assert gateway.log.read_text().count("\n") == 1


def test_under_another_server_a_bad_file_stops_the_start_too(tmp_path: Path) -> None:
    settings = {"ENGINE_URLS": "http://127.0.0.1:9", "TENANTS_FILE": "nowhere.toml"}
    gateway = GatewayProcess.under_plain_uvicorn("plain", free_port(), tmp_path, **settings)
    assert gateway.wait() != 0
    assert "gllm: TENANTS_FILE: nowhere.toml: it cannot be read" in gateway.log.read_text()
    assert "Traceback" not in gateway.log.read_text()
