"""GLLM's endpoints, with and without `/v1`: its words, its status codes, and what its clients do with them."""

import asyncio

import pytest

from app.cluster.control import Order, WorkerState
from app.errors import NotReleased
from tests.gateway.control.conftest import Open, eventually
from tests.support.workers import ScriptedWorker

PREFIXES = pytest.mark.parametrize("prefix", ["", "/v1"])


@PREFIXES
async def test_a_model_is_loaded_everywhere_with_one_call_that_is_acknowledged_at_once(
    headquarters: Open, prefix: str
) -> None:
    workers = [ScriptedWorker(name) for name in ("w1", "w2")]
    here = await headquarters(*workers)
    await here.all_announced()
    for each in workers:
        each.gate.clear()
    answer = await here.ask("POST", f"{prefix}/load_model", {"model_path": "org/next", "force_reload": False})
    assert (answer.status, answer.body) == (200, b"Model load requested successfully.")
    assert answer.headers["content-type"].startswith("text/plain")
    for each in workers:
        each.gate.set()
    await eventually(lambda: here.house.gateway.fleet.served)
    assert {each.now.state for each in workers} == {WorkerState.READY}


async def test_with_wait_the_answer_comes_when_the_model_is_there(headquarters: Open) -> None:
    worker = ScriptedWorker("w1", "demo")
    here = await headquarters(worker)
    await here.all_announced()
    worker.gate.clear()
    asking = asyncio.create_task(here.ask("POST", "/load_model", {"model_path": "next", "wait": True}))
    await eventually(lambda: worker.loads)
    assert not asking.done()
    worker.gate.set()
    assert (await asking).body == b"Model load requested successfully."
    assert here.house.gateway.fleet.served.keys() == {"next"}


async def test_with_wait_a_load_that_fails_says_why_with_the_engines_last_lines(headquarters: Open) -> None:
    worker = ScriptedWorker("w1", "demo")
    worker.broken.add("next")
    here = await headquarters(worker)
    await here.all_announced()
    answer = await here.ask("POST", "/load_model", {"model_path": "next", "wait": True})
    assert (answer.status, answer.error["code"]) == (502, "load_failed")
    assert answer.error["message"].splitlines() == [
        "The engine ended: exit code 1.",
        "  | engine: loading weights",
        "  | engine: out of memory",
    ]
    assert worker.now.order == Order(model="demo")


async def test_a_second_load_meanwhile_is_409_and_says_when_to_come(headquarters: Open) -> None:
    worker = ScriptedWorker("w1", "demo")
    worker.gate.clear()
    here = await headquarters(worker)
    await here.all_announced()
    await here.ask("POST", "/load_model", {"model_path": "next"})
    second = await here.ask("POST", "/load_model", {"model_path": "third"})
    assert (second.status, second.error["code"], second.headers["retry-after"]) == (409, "load_in_progress", "5")
    worker.gate.set()


async def test_without_workers_the_wish_is_acknowledged_and_kept_for_those_that_come(headquarters: Open) -> None:
    here = await headquarters(ScriptedWorker("w1"))
    answer = await here.ask("POST", "/load_model", {"model_path": "org/next"})
    assert (answer.status, answer.body) == (200, b"Model load requested successfully.")
    waited = await here.ask("POST", "/load_model", {"model_path": "org/next", "wait": True})
    assert (waited.status, waited.error["code"]) == (503, "no_workers")
    added = await here.ask("POST", "/add_worker", {"address": "http://w1:9000"})
    assert (added.status, added.body) == (200, b"org/next"), "as GLLM's workers expect it"
    await eventually(lambda: here.house.gateway.fleet.served.keys() == {"next"})


@PREFIXES
@pytest.mark.parametrize("field", ["address", "worker_url"])
async def test_a_worker_is_added_by_either_name_and_the_current_models_name_is_the_answer(
    headquarters: Open, prefix: str, field: str
) -> None:
    here = await headquarters(ScriptedWorker("w1", "demo"))
    for _ in range(2):
        answer = await here.ask("POST", f"{prefix}/add_worker", {field: "http://w1:9000/"})
        assert (answer.status, answer.body) == (200, b"")
    assert here.house.gateway.fleet.served == {"demo": 2_048}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"address": ""},
        {"address": 5},
        {"address": "w1:9000"},
        {"address": "ftp://w1"},
        {"address": "http://user:pass@w1:9000"},
        {"address": "http://w1:9000/?x=1"},
        {"address": "http://w1:99999"},
        {"address": "http://w1\r\nHost: x"},
    ],
)
async def test_a_request_that_is_none_is_refused_in_gllms_words(headquarters: Open, body: dict[str, object]) -> None:
    here = await headquarters()
    answer = await here.ask("POST", "/add_worker", body)
    assert answer.status == 400
    assert answer.body.startswith(b"Invalid request data: ")
    assert b"pass" not in answer.body.replace(b"password", b"")


async def test_an_address_where_no_worker_is_says_so(headquarters: Open) -> None:
    here = await headquarters()
    answer = await here.ask("POST", "/add_worker", {"address": "http://nobody:9000"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "no_worker_there", "address")
    assert answer.error["message"] == "No worker answers at http://nobody:9000."


async def test_a_name_that_is_taken_says_by_whom(headquarters: Open) -> None:
    here = await headquarters(ScriptedWorker("w1", "demo"))
    await here.all_announced()
    here.workers["http://other:9000"] = ScriptedWorker("w1", life="other")
    answer = await here.ask("POST", "/add_worker", {"address": "http://other:9000"})
    assert (answer.status, answer.error["code"]) == (409, "worker_name_taken")


@PREFIXES
async def test_gpus_are_released_everywhere(headquarters: Open, prefix: str) -> None:
    workers = [ScriptedWorker(name, "demo") for name in ("w1", "w2")]
    here = await headquarters(*workers)
    answer = await here.ask("POST", f"{prefix}/release_gpus")
    assert (answer.status, answer.body) == (200, b"No workers to release gpus from.")
    await here.all_announced()
    answer = await here.ask("POST", f"{prefix}/release_gpus")
    assert (answer.status, answer.body) == (200, b"Gpus released")
    assert [each.now.state for each in workers] == [WorkerState.EMPTY] * 2
    await eventually(lambda: not here.house.gateway.fleet.models)


async def test_one_that_does_not_release_makes_it_fail_and_says_so(headquarters: Open) -> None:
    workers = [ScriptedWorker(name, "demo") for name in ("w1", "w2")]
    here = await headquarters(*workers)
    await here.all_announced()

    async def stuck(*, drain_s: float) -> None:
        raise NotReleased("8 GiB are still taken.")

    workers[1].release = stuck  # type: ignore[assignment]
    answer = await here.ask("POST", "/release_gpus", {"drain_s": 0})
    assert (answer.status, answer.body) == (500, b"Failed to release gpus\n w2: 8 GiB are still taken.")
    assert workers[0].now.state is WorkerState.EMPTY


@pytest.mark.parametrize("path", ["/load_model", "/v1/load_model", "/release_gpus"])
@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"model_path":""}', b"application/json", 400),
        (b'{"model":"x"}', b"application/json", 400),
        (b'{"model_path":"x","force_relaod":true}', b"application/json", 400),
        (b"{", b"application/json", 400),
        (b"[" * 5_000, b"application/json", 400),
        (b"\xff", b"application/json", 400),
        (b'{"model_path":"x"}', b"text/plain", 415),
        (b'{"model_path":"' + b"x" * 70_000 + b'"}', b"application/json", 413),
    ],
)
async def test_what_is_no_order_is_refused(
    headquarters: Open, path: str, body: bytes, kind: bytes, status: int
) -> None:
    worker = ScriptedWorker("w1", "demo")
    here = await headquarters(worker)
    await here.all_announced()
    exchange = here.exchange("POST", path, body)
    exchange.scope["headers"] = [(b"content-type", kind)]
    assert (await exchange.run(here.house.gateway.app)).status == status
    assert (worker.loads, worker.now.state) == ([], WorkerState.READY)
