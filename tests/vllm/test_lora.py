"""LoRA adapters on a running vLLM: the gateway sees within a probe what a replica serves, and calls no other for it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.processes import EngineSite, GatewayProcess, comes_true
from tests.support.vllm import ON_VLLM, VllmFleet
from tests.vllm.adapters import write_adapter

pytestmark = [*ON_VLLM]

ASKED = {"prompt": "Docker is", "max_tokens": 12, "temperature": 0}
A_PROBE_S = 3.0


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def other(vllm: VllmFleet, adapter: Path) -> Iterator[EngineSite]:
    """The one of the two replicas that has the adapter, named `tuned`."""
    engine = vllm.engines["engine-1"]
    load(engine, adapter)
    try:
        assert comes_true(lambda: "tuned" in models(vllm.gateway), A_PROBE_S)
        yield engine
    finally:
        if "tuned" in models(engine):
            unload(engine)
    assert comes_true(lambda: models(vllm.gateway) == {"demo"}, A_PROBE_S)


def load(engine: EngineSite, adapter: Path) -> None:
    body = {"lora_name": "tuned", "lora_path": str(adapter)}
    engine.http.post("/v1/load_lora_adapter", json=body).raise_for_status()


def unload(engine: EngineSite) -> None:
    engine.http.post("/v1/unload_lora_adapter", json={"lora_name": "tuned"}).raise_for_status()


def models(site: EngineSite | GatewayProcess) -> set[str]:
    return {model["id"] for model in site.http.get("/v1/models").json()["data"]}


def answered(gateway: GatewayProcess, model: str) -> httpx.Response:
    return gateway.http.post("/v1/completions", json=ASKED | {"model": model})


@pytest.mark.usefixtures("other")
def test_an_adapter_answers_under_its_own_name_and_differently(gateway: GatewayProcess) -> None:
    base, tuned = answered(gateway, "demo"), answered(gateway, "tuned")
    assert (base.status_code, tuned.status_code) == (200, 200)
    assert tuned.json()["model"] == "tuned"
    assert tuned.json()["choices"][0]["text"] != base.json()["choices"][0]["text"]


@pytest.mark.usefixtures("other")
def test_only_the_replica_that_has_it_is_asked_for_an_adapter(gateway: GatewayProcess) -> None:
    answers = [answered(gateway, "tuned") for _ in range(8)]
    assert {answer.headers["x-gllm-replica"] for answer in answers} == {"engine-1"}
    assert {answered(gateway, "demo").headers["x-gllm-replica"] for _ in range(16)} == {"engine-0", "engine-1"}


def test_an_adapter_that_was_unloaded_is_unknown_again(gateway: GatewayProcess, other: EngineSite) -> None:
    assert answered(gateway, "tuned").status_code == 200
    unload(other)
    assert comes_true(lambda: answered(gateway, "tuned").status_code == 404, A_PROBE_S)
    assert answered(gateway, "tuned").json()["error"]["code"] == "model_not_found"
    assert answered(gateway, "demo").status_code == 200


def test_between_the_unloading_and_the_probe_nobody_is_blamed(
    vllm: VllmFleet, gateway: GatewayProcess, other: EngineSite
) -> None:
    """The gateway may still believe that the replica has it."""
    unload(other)
    statuses = {answered(gateway, "tuned").status_code for _ in range(20)}
    assert statuses <= {404, 503}
    assert vllm.circuits_open() == 0
    assert answered(gateway, "demo").status_code == 200


# --- with one call, everywhere ----------------------------------------------------------------------------------------


def test_one_call_loads_an_adapter_on_all_replicas_and_one_takes_it_from_all(
    gateway: GatewayProcess, adapter: Path
) -> None:
    order = {"model": "demo", "name": "everywhere", "path": str(adapter)}
    assert gateway.http.post("/admin/adapters", json=order).status_code == 200
    try:
        (listed,) = [each for each in gateway.http.get("/v1/models").json()["data"] if each["id"] == "everywhere"]
        assert listed["parent"] == "demo"
        answers = [answered(gateway, "everywhere") for _ in range(24)]
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.headers["x-gllm-replica"] for answer in answers} == {"engine-0", "engine-1"}
    finally:
        assert gateway.http.delete("/admin/adapters/everywhere").status_code == 200
    assert comes_true(lambda: models(gateway) == {"demo"}, A_PROBE_S)
    assert answered(gateway, "everywhere").status_code == 404


def test_an_adapter_that_cannot_be_loaded_is_on_no_replica_and_vllm_says_why(
    vllm: VllmFleet, gateway: GatewayProcess, tmp_path: Path
) -> None:
    order = {"model": "demo", "name": "nowhere", "path": str(tmp_path / "nothing")}
    refused = gateway.http.post("/admin/adapters", json=order)
    assert refused.status_code == 502
    assert refused.json()["error"]["code"] == "load_failed"
    assert "No adapter found" in refused.json()["error"]["message"]
    assert all(models(engine) == {"demo"} for engine in vllm.engines.values())
    assert gateway.http.delete("/admin/adapters/nowhere").json()["error"]["code"] == "unknown_adapter"
