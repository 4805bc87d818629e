"""A drill on real programs: nobody can answer, Prometheus notices, Alertmanager calls, and the call arrives."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.e2e.conftest import running
from tests.support.ports import free_port
from tests.support.processes import ROOT, Engine, GatewayProcess, Server, clean_environment, comes_true
from tests.support.prometheus import CONFIG, Prometheus, executable

AM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
pytestmark = [
    pytest.mark.skipif(
        AM is None or executable() is None, reason="*** NOT TESTED: Prometheus or Alertmanager is missing ***"
    ),
    pytest.mark.timeout(300),
]


def hurried(rules: Path, into: Path) -> Path:
    """The project's rules, which wait no longer than a second."""
    into.mkdir()
    for file in rules.glob("*.yml"):
        said = yaml.safe_load(file.read_text())
        for rule in (rule for group in said["groups"] for rule in group["rules"] if "for" in rule):
            rule["for"] = "1s"
        (into / file.name).write_text(yaml.safe_dump(said))
    return into


def told_to(pager: str, into: Path) -> Path:
    """The project's Alertmanager, as quick, and calling here."""
    said = yaml.safe_load((ROOT / "deploy" / "alertmanager" / "alertmanager.yml").read_text())
    for route in (said["route"], *said["route"]["routes"]):
        route |= {"group_wait": "100ms", "group_interval": "1s"}
    file = into / "alertmanager.yml"
    file.write_text(yaml.safe_dump(said).replace("http://pager:8090", pager))
    return file


@dataclass(frozen=True)
class Watch:
    engine: Engine
    pager: Server

    def calls(self, alert: str) -> list[dict[str, Any]]:
        return [call for call in self.pager.http.get("/calls").json() if call["alert"] == alert]

    def was_called(self, alert: str, status: str) -> bool:
        return bool(comes_true(lambda: any(call["status"] == status for call in self.calls(alert)), 90, every_s=0.3))


def _server(name: str, argv: list[str], port: int, ready: str, folder: Path, put: ExitStack) -> Server:
    server = Server(name, argv, port, folder / f"{name}.log", clean_environment(), folder)
    put.callback(server.end)
    server.await_ready(ready, limit_s=60)
    return server


@pytest.fixture
def pager(tmp_path: Path) -> Iterator[Server]:
    with ExitStack() as put:
        port = free_port()
        script = str(ROOT / "deploy" / "alertmanager" / "pager.py")
        yield _server("pager", [sys.executable, "-IS", script, str(port)], port, "/calls", tmp_path, put)


@pytest.fixture
def watch(pager: Server, tmp_path: Path) -> Iterator[Watch]:
    with ExitStack() as put:
        engine = put.enter_context(running(Engine("engine", free_port(), tmp_path)))
        am_port, metrics = free_port(), free_port()
        config = told_to(pager.url, tmp_path)
        argv = [str(AM), f"--config.file={config}", f"--storage.path={tmp_path / 'am'}", "--cluster.listen-address="]
        argv.append(f"--web.listen-address=127.0.0.1:{am_port}")
        _server("alertmanager", argv, am_port, "/-/ready", tmp_path, put)
        home = tmp_path / "home"
        home.mkdir()
        hurried(CONFIG.parent / "rules", home / "rules")
        shutil.copy(CONFIG, home / "prometheus.yml")
        settings = {"ENGINE_URLS": engine.url, "METRICS_PORT": str(metrics), "PROBE_INTERVAL": "0.2"}
        put.enter_context(running(GatewayProcess("drill", free_port(), tmp_path, **settings)))
        looking = Prometheus(
            tmp_path / "prometheus",
            {"gateway": {f"127.0.0.1:{metrics}": "gateway"}},
            home / "prometheus.yml",
            alertmanager=f"127.0.0.1:{am_port}",
        )
        put.callback(looking.end)
        looking.await_ready("/-/ready", limit_s=30)
        yield Watch(engine, pager)


def test_a_page_arrives_when_the_last_replica_is_killed_and_is_taken_back(watch: Watch, tmp_path: Path) -> None:
    assert watch.was_called("Watchdog", "firing")
    assert watch.calls("NoHealthyReplica") == []
    psutil.Process(watch.engine.pid).kill()
    assert watch.was_called("NoHealthyReplica", "firing")
    with running(Engine("another", watch.engine.port, tmp_path)):
        assert watch.was_called("NoHealthyReplica", "resolved")
    assert {call["to"] for call in watch.calls("NoHealthyReplica")} == {"page"}


def test_the_pager_takes_what_alertmanager_sends_and_nothing_else(pager: Server) -> None:
    post = pager.http.post
    assert post("/page", content=b"{").status_code == 400
    assert post("/page", json={"alerts": [{}]}).status_code == 400
    assert post("/page", content=json.dumps({"x": "y" * 2**20})).status_code == 413
    assert pager.http.get("/other").status_code == 404
