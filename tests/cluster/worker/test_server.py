"""The control API, over HTTP, with a real worker behind it."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec
import pytest

from app.cluster.control import Order, Released, Status, WorkerState
from app.cluster.worker.server import MAX_BODY_BYTES, create_app, serving
from app.cluster.worker.worker import LocalWorker
from tests.cluster.worker.conftest import Bench, loaded, settled

SECRET = "open sesame"


@dataclass
class Caller:
    worker: LocalWorker
    http: httpx.AsyncClient

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.http.get(path, **more)

    async def post(self, path: str, body: object = None, **more: Any) -> httpx.Response:
        return await self.http.post(path, **more, json=body) if body else await self.http.post(path, **more)


@asynccontextmanager
async def serving_one(bench: Bench, secret: str | None = None, **engine: object) -> AsyncIterator[Caller]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with (
            bench.worker(**engine) as worker,  # type: ignore[arg-type]
            serving(create_app(worker, secret=secret, drain_s=5), listening),
            httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http,
        ):
            yield Caller(worker, http)
            await worker.stop(drain_s=0)


def status_of(answer: httpx.Response) -> Status:
    return msgspec.json.decode(answer.content, type=Status)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_model_is_loaded_swapped_and_released(bench: Bench) -> None:
    async with serving_one(bench) as caller:
        answer = await caller.get("/health")
        assert (answer.status_code, answer.json()["state"]) == (503, "empty")
        answer = await caller.post("/load_model", {"model_path": "well", "names": ["a"], "id": "1"})
        assert (answer.status_code, status_of(answer).order) == (202, Order(model="well", names=("a",), id="1"))
        await settled(caller.worker)
        assert (await caller.post("/load_model", {"model_path": "well", "names": ["a"]})).status_code == 200
        assert (await caller.get("/health")).status_code == 200
        assert (await caller.post("/health")).status_code == 200  # as GLLM's asked
        assert status_of(await caller.post("/drain")).state is WorkerState.DRAINING
        assert status_of(await caller.post("/admit")).state is WorkerState.READY
        answer = await caller.post("/release_gpus")
        assert isinstance(msgspec.json.decode(answer.content, type=Released), Released)
        assert status_of(await caller.get("/status")).state is WorkerState.EMPTY


async def test_what_gllm_sends_is_enough(bench: Bench) -> None:
    async with serving_one(bench) as caller:
        await caller.post("/load_model", {"model_path": "well", "force_reload": False})
        assert (await settled(caller.worker)).names == ("well",)
        assert (await caller.post("/load_model", {"model_path": "well", "force_reload": True})).status_code == 202
        assert (await settled(caller.worker)).starts == 2


async def test_a_look_may_wait_for_the_next_change(bench: Bench) -> None:
    async with serving_one(bench) as caller:
        now = status_of(await caller.get("/status"))
        assert status_of(await caller.get("/status", params={"after": now.version, "wait_s": 0.05})) == now
        waiting = asyncio.ensure_future(caller.get("/status", params={"after": now.version, "wait_s": 30}))
        await asyncio.sleep(0.1)
        await caller.worker.load(Order(model="well"), drain_s=0)
        assert status_of(await waiting).state is WorkerState.LOADING


async def test_two_loads_at_once_are_told_apart(bench: Bench) -> None:
    async with serving_one(bench) as caller:
        await caller.post("/load_model", {"model_path": "well-slow1"})
        assert code_of(await caller.post("/load_model", {"model_path": "other"})) == (409, "load_in_progress")
        assert code_of(await caller.post("/drain")) == (409, "load_in_progress")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/load_model", b'{"model_path": "other"}'), ("/release_gpus", b"")],
)
async def test_an_order_of_somebody_who_has_hung_up_is_not_carried_out(bench: Bench, path: str, body: bytes) -> None:
    async with serving_one(bench) as caller:
        await loaded(caller.worker, "well")
        head = f"POST {path} HTTP/1.1\r\nhost: w\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        with socket.create_connection((caller.http.base_url.host, caller.http.base_url.port or 0)) as gateway:
            gateway.sendall(head.encode() + b"\r\n\r\n" + body)  # which finds it all at once, as one that stood still
        await asyncio.sleep(0.3)
        assert (caller.worker.now.state, caller.worker.now.names) == (WorkerState.READY, ("well",))


@pytest.mark.parametrize(
    ("path", "content", "kind", "code"),
    [
        ("/load_model", b'{"model_path": "/no/such/model"}', "application/json", (502, "load_failed")),
        ("/load_model", b'{"model_path": ""}', "application/json", (400, "invalid_value")),
        ("/load_model", b'{"model": "well"}', "application/json", (400, "invalid_value")),
        ("/load_model", b'{"model_path": "well", "nmaes": []}', "application/json", (400, "invalid_value")),
        ("/load_model", b'{"model_path": "well", "drain_s": -1}', "application/json", (400, "invalid_value")),
        ("/load_model", b"[" * 10_000, "application/json", (400, "invalid_value")),
        ("/load_model", b"\xff", "application/json", (400, "invalid_value")),
        ("/load_model", b"", "application/json", (400, "invalid_value")),
        ("/load_model", b'{"model_path": "well"}', "text/plain", (415, "unsupported_media_type")),
        ("/load_model", b" " * (MAX_BODY_BYTES + 1), "application/json", (413, "request_too_large")),
        ("/release_gpus", b'{"drain": 1}', "application/json", (400, "invalid_value")),
        ("/adapters", b'{"name": "a", "path": "/a"}', "application/json", (501, "not_offered_by_worker")),
        ("/nothing", b"", "application/json", (404, "not_found")),
        ("/load_model/", b"", "application/json", (404, "not_found")),
        ("/status", b"", "application/json", (405, "method_not_allowed")),
    ],
)
async def test_what_is_wrong_is_told_in_the_gateways_shape(
    bench: Bench, path: str, content: bytes, kind: str, code: tuple[int, str]
) -> None:
    async with serving_one(bench) as caller:
        answer = await caller.http.post(path, content=content, headers={"content-type": kind})
        assert code_of(answer) == code
        assert caller.worker.now.state is WorkerState.EMPTY


@pytest.mark.parametrize("query", ["after=x", "wait_s=nan", "wait_s=-2", "after=1e400", "wait_s="])
async def test_bad_numbers_are_refused(bench: Bench, query: str) -> None:
    async with serving_one(bench) as caller:
        assert (await caller.get(f"/status?{query}")).status_code == 400


async def test_the_secret_is_asked_for_everywhere_but_at_health(bench: Bench) -> None:
    async with serving_one(bench, SECRET) as caller:
        for path in ("/status", "/load_model", "/logs", "/nothing"):
            assert code_of(await caller.post(path)) == (401, "missing_api_key")
            wrong = {"authorization": "Bearer open sesam"}
            assert code_of(await caller.post(path, headers=wrong)) == (401, "invalid_api_key")
        assert (await caller.get("/health")).status_code == 503
        right = {"authorization": f"bearer {SECRET}"}
        assert (await caller.get("/status", headers=right)).status_code == 200


async def test_without_a_secret_a_web_page_gets_nothing(bench: Bench) -> None:
    async with serving_one(bench) as caller:
        answer = await caller.post("/release_gpus", headers={"origin": "http://evil.example"})
        assert code_of(answer) == (403, "not_allowed")


async def test_adapters_over_http(bench: Bench) -> None:
    (bench.folder / "lora").mkdir()
    async with serving_one(bench, args=("--enable-lora",)) as caller:
        await loaded(caller.worker, "well")
        answer = await caller.post("/adapters", {"name": "team/a", "path": str(bench.folder / "lora")})
        assert [adapter.name for adapter in status_of(answer).adapters] == ["team/a"]
        answer = await caller.post("/adapters", {"name": "b", "path": "/no/lora"})
        assert code_of(answer) == (502, "load_failed")
        assert "No adapter found for /no/lora" in answer.json()["error"]["message"]
        assert status_of(await caller.http.delete("/adapters/team/a")).adapters == ()
        assert code_of(await caller.http.delete("/adapters/team/a")) == (404, "unknown_adapter")


async def test_logs_are_read_and_followed_to_the_end(bench: Bench) -> None:
    async with serving_one(bench) as caller:
        await loaded(caller.worker, "well")
        assert (await caller.get("/logs?lines=1")).text == "asked for well\n"
        async with caller.http.stream("GET", "/logs?lines=0&follow=1") as following:
            await caller.post("/load_model", {"model_path": "other"})
            await settled(caller.worker)
            await caller.worker.stop(drain_s=0)
            assert (await following.aread()).decode() == "loading other\nasked for other\n"
