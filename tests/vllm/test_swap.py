"""Another model in the place of the one that is served, on real vLLM: round by round, while calls go on."""

import shutil
import threading
from pathlib import Path

import httpx
import pytest

from tests.support.processes import ROOT, GatewayProcess
from tests.support.vllm import START_S, VllmFleet

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2 * START_S, func_only=True)]


class Callers:
    """Two who ask again as soon as they are answered."""

    def __init__(self, url: str) -> None:
        self.statuses: list[int] = []
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        body = {"model": "demo", "prompt": "Docker is", "max_tokens": 8}
        with httpx.Client(base_url=self._url, trust_env=False, timeout=120) as http:
            while not self._over.wait(0.1):
                self.statuses.append(http.post("/v1/completions", json=body).status_code)


def test_other_weights_take_the_place_of_those_served_and_no_call_is_lost(
    vllm: VllmFleet, gateway: GatewayProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The copy stays, for whatever is asked of `demo` after this."""
    copy = shutil.copytree(ROOT / "models" / "demo", tmp_path_factory.mktemp("models") / "copy")
    before = {name: vllm.server_of(name) for name in vllm.engines}
    order = {"model": str(copy), "names": ["demo"], "wait": True, "drain_s": 30}
    with Callers(gateway.url) as callers:
        answer = gateway.http.post("/admin/models", json=order, timeout=START_S)
    assert answer.status_code == 200, answer.text
    assert set(callers.statuses) == {200}
    assert len(callers.statuses) > 20
    rows = {row["name"]: row for row in gateway.http.get("/admin/workers").json()["workers"]}
    assert {name: rows[name]["state"] for name in before} == dict.fromkeys(before, "ready")
    assert {Path(rows[name]["order"]["model"]).name for name in before} == {"copy"}
    assert all(vllm.server_of(name) != pid for name, pid in before.items())


def test_a_model_that_vllm_cannot_load_leaves_all_as_it_was(gateway: GatewayProcess, tmp_path: Path) -> None:
    """Its own words say why."""
    broken = shutil.copytree(ROOT / "models" / "demo", tmp_path / "broken")
    (broken / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "none-such"}')
    order = {"model": str(broken), "wait": True, "drain_s": 10, "workers": ["engine-1"]}
    answer = gateway.http.post("/admin/models", json=order, timeout=START_S)
    assert answer.status_code == 502, answer.text
    assert answer.json()["error"]["code"] == "load_failed"
    assert "none-such" in gateway.http.get("/admin/swap").text
    assert [model["id"] for model in gateway.http.get("/v1/models").json()["data"]] == ["demo"]
