"""What the gateway answers by itself: what it is, how it is, which models there are."""

import asyncio
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineUnreachable
from app.gateway.openapi import NOBODY_LEFT
from app.version import VERSION
from app.wire.errors import ERRORS
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import Exchange


async def unreachable(house: House) -> None:
    """Every engine is gone, and the gateway has noticed."""
    for engine in house.engines.values():
        engine.refuse_with = EngineUnreachable()
    await house.post(asking())


async def get(house: House, path: str, method: str = "GET") -> Exchange:
    done = await house.get(path, method)
    assert done.headers["x-request-id"].startswith("req-")
    assert int(done.headers["content-length"]) == len(done.body)
    if done.status >= 400 and path != "/health":
        assert done.error["message"]
    return done


READABLE = [
    "/",
    "/docs",
    "/health",
    "/livez",
    "/readyz",
    "/metrics",
    "/v1/models",
    "/models",
    "/v1/models/demo",
    "/models/demo",
]


@pytest.mark.parametrize("path", READABLE)
async def test_what_can_be_read_can_be_asked_after_with_head(house: House, path: str) -> None:
    read, asked = await get(house, path), await get(house, path, "HEAD")
    assert (read.status, asked.status) == (200, 200)
    assert read.headers["content-type"] == asked.headers["content-type"]


@pytest.mark.parametrize("path", READABLE)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_what_can_be_read_cannot_be_written(house: House, path: str, method: str) -> None:
    done = await get(house, path, method)
    assert (done.status, done.error["code"]) == (405, "method_not_allowed")
    assert set(done.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_the_root_says_what_this_is(house: House) -> None:
    assert (await get(house, "/")).json() == {
        "message": "gllm, a gateway for language models",
        "version": VERSION,
        "docs": "/docs",
    }


async def test_health_tells_a_few_facts(build: Build) -> None:
    house = await build(a=Scripted(serves={"demo": 2_048}), b=Scripted(serves={"demo": 2_048}))
    await house.post(asking())
    told = (await get(house, "/health")).json()
    assert told.pop("uptime") >= 0
    assert told == {
        "status": "healthy",
        "version": VERSION,
        "model": "demo",
        "models": ["demo"],
        "requests_total": 1,
        "requests_active": 0,
        "replicas": {"a": "ready", "b": "ready"},
    }


@pytest.mark.parametrize(
    ("state", "status", "code", "ready"),
    [("healthy", "healthy", 200, 200), ("failing", "unhealthy", 503, 503), ("draining", "draining", 503, 503)],
)
async def test_health_and_readiness_follow_the_state(
    house: House, state: str, status: str, code: int, ready: int
) -> None:
    if state == "failing":
        await unreachable(house)
    if state == "draining":
        house.gateway.admission.draining = True
    health, readyz, livez = [await get(house, path) for path in ("/health", "/readyz", "/livez")]
    assert (health.json()["status"], health.status, readyz.status, livez.status) == (status, code, ready, 200)
    if ready == 503:
        assert readyz.headers["x-gllm-reason"] == {"failing": "no_replica", "draining": "draining"}[state]
    assert livez.json() == {"status": "ok"}


async def test_before_the_first_engine_answers_the_gateway_is_starting(house: House) -> None:
    for replica in house.gateway.fleet.replicas:
        house.gateway.fleet.remove(replica.name)
        house.gateway.fleet.add(type(replica)(replica.name, replica.engine))
    health = await get(house, "/health")
    assert (health.status, health.json()["status"], health.json()["model"]) == (503, "starting", None)
    assert (await get(house, "/readyz")).status == 503
    assert (await get(house, "/v1/models")).json() == {"object": "list", "data": []}
    done = await house.post(asking())
    assert (done.status, done.headers["x-gllm-reason"]) == (503, "no_replica"), "not 'unknown model': it may come"
    await house.gateway.prober.round()
    assert (await get(house, "/readyz")).status == 200


async def test_one_replica_left_is_enough_to_be_healthy(build: Build) -> None:
    house = await build(a=Scripted(refuse_with=EngineUnreachable(), refusals=1), b=Scripted())
    await house.post(asking())
    told = (await get(house, "/health")).json()
    assert (told["status"], told["replicas"]) == ("healthy", {"a": "failing", "b": "ready"})


async def test_metrics_are_prometheus_text(house: House) -> None:
    await house.post(asking())
    done = await get(house, "/metrics")
    assert done.headers["content-type"].startswith("text/plain; version=")
    assert b"llm_requests_total{" in done.body


async def test_streams_go_on_while_a_page_of_metrics_is_made(house: House) -> None:
    """Of a hundred models it takes as long as a few tokens."""
    assert house.gateway.observers.metrics is not None
    house.gateway.observers.metrics.know(lambda: {f"model-{number}": None for number in range(100)})
    asked = asyncio.create_task(get(house, "/metrics"))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20


async def test_metrics_can_be_turned_off(build: Build) -> None:
    house = await build(settings={"ENABLE_METRICS": False})
    assert (await get(house, "/metrics")).error["code"] == "not_found"


# --- models -------------------------------------------------------------------------------------------------------

NAMES = ["demo", "Qwen/Qwen3-0.6B", "a/b/c", "é", "with space", "a%2Fb", "..", "x:y@1"]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_models_are_those_of_all_replicas_once(build: Build, path: str) -> None:
    house = await build(a=Scripted(serves={"x": 10, "y": None}), b=Scripted(serves={"x": 20, "z": 5}))
    listing = (await get(house, path)).json()
    assert listing["object"] == "list"
    assert {each["id"]: each["max_model_len"] for each in listing["data"]} == {"x": 10, "y": None, "z": 5}
    assert all(each["object"] == "model" and each["owned_by"] == "gllm" for each in listing["data"])
    assert all(each["created"] > 1_700_000_000 for each in listing["data"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefix", ["/v1/models/", "/models/"])
async def test_a_model_is_found_under_its_name_whatever_it_is(build: Build, prefix: str, name: str) -> None:
    house = await build(only=Scripted(serves={name: 2_048}))
    found = (await get(house, f"{prefix}{name}")).json()
    assert (found["id"], found["max_model_len"]) == (name, 2_048)
    assert [found] == (await get(house, "/v1/models")).json()["data"]


@pytest.mark.parametrize("name", ["nope", "demo/", "/demo", "DEMO", "demo/x", ""])
async def test_a_model_that_is_not_served_is_404(house: House, name: str) -> None:
    done = await get(house, f"/v1/models/{name}")
    assert (done.status, done.error["code"], done.error["param"]) == (404, "model_not_found", "model")


# --- paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/v1",
        "/v1/",
        "/health/",
        "//health",
        "/Health",
        "/v1/chat",
        "/v1/chat/completions/",
        "/v1//chat/completions",
        "/V1/chat/completions",
        "/v1/chat/completions/render",
        "/v1/completions/../models",
        "/v1/load_lora_adapter",
        "/invocations",
        "/ping",
        "/load",
        "/version",
        "/server_info",
        "/collective_rpc",
        "/scale_elastic_ep",
        "/reset_prefix_cache",
        "/sleep",
        "/inference/v1/generate",
        "/v1/audio/speech",
        "/debug",
        "/.env",
        "*",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
async def test_what_is_not_there_is_404_in_the_one_shape(house: House, path: str, method: str) -> None:
    done = await get(house, path, method)
    assert (done.status, done.error["code"]) == (404, "not_found")
    assert house.engine.calls == []


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings", "/responses", "/messages"])
async def test_gllms_clients_leave_v1_out(house: House, path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/completions": {"prompt": "x"},
        "/embeddings": {"input": "x"},
        "/responses": {"input": "x"},
        "/messages": asking(max_tokens=5),
    }
    for spelling in (path, f"/v1{path}"):
        assert (await house.post(bodies.get(path, asking()), path=spelling)).status == 200
    assert {call.route.value for call in house.engine.calls} == {f"/v1{path}"}


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"])
async def test_tokenizing_is_found_with_and_without_v1(house: House, path: str) -> None:
    body = {"tokens": [1]} if "de" in path else {"prompt": "x"}
    assert (await house.post(body, path=path)).status == 200
    assert house.engine.calls[0].route.value == path.removeprefix("/v1")


def test_the_status_that_nobody_reads_is_one_of_ours() -> None:
    assert NOBODY_LEFT in {row.status for row in ERRORS.values()}
