"""What operators see of workers and ask of them, under `/admin`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.cluster.control import Adapter, Order, WorkerState
from app.cluster.progress import Outcome
from app.errors import NotOffered, WorkerUnreachable
from app.telemetry.base import SwapEnded, WorkerChanged
from tests.gateway.conftest import asking
from tests.gateway.control.conftest import Open, eventually
from tests.support.workers import ScriptedWorker, refused

SSE = (b"accept", b"text/event-stream")


def serving(*names: str) -> list[ScriptedWorker]:
    return [ScriptedWorker(name, "demo") for name in names]


# --- models -----------------------------------------------------------------------------------------------------------


async def test_models_are_changed_with_all_options_and_the_answer_tells_all(headquarters: Open) -> None:
    workers = serving("w1", "w2", "w3")
    here = await headquarters(*workers)
    await here.all_announced()
    wish = {"model": "org/next", "names": ["next", "n"], "args": ["--x"], "workers": ["w1", "w2"], "floor": 2}
    answer = await here.ask("POST", "/admin/models", {**wish, "drain_s": 0.5, "force": True, "wait": True})
    assert answer.status == 200
    page: dict[str, Any] = answer.json()
    assert (page["outcome"], page["rounds"], page["names"]) == ("done", [["w1"], ["w2"]], ["next", "n"])
    (order,) = workers[0].loads
    assert (order.model, order.names, order.args) == ("org/next", ("next", "n"), ("--x",))
    assert workers[2].loads == []
    assert (await here.ask("GET", "/admin/swap")).json() == page


async def test_without_wait_it_is_accepted_and_can_be_looked_at_and_cancelled(headquarters: Open) -> None:
    (worker,) = serving("w1")
    worker.gate.clear()
    here = await headquarters(worker)
    await here.all_announced()
    assert (await here.ask("GET", "/admin/swap")).status == (await here.ask("DELETE", "/admin/swap")).status == 404
    answer = await here.ask("POST", "/admin/models", {"model": "next"})
    assert (answer.status, answer.json()["outcome"]) == (202, "running")
    await eventually(lambda: worker.now.state is WorkerState.LOADING)
    cancelling = asyncio.create_task(here.ask("DELETE", "/admin/swap"))
    await eventually(lambda: "release" in worker.told)
    worker.gate.set()
    page = (await cancelling).json()
    assert (page["outcome"], page["reason"]) == ("cancelled", "The change of models was cancelled.")
    assert worker.now.order == Order(model="demo")


async def test_who_asks_for_events_follows_it_to_the_end(headquarters: Open) -> None:
    workers = serving("w1", "w2")
    here = await headquarters(*workers)
    await here.all_announced()
    done = await here.ask("POST", "/admin/models", {"model": "next"}, (SSE,))
    assert (done.status, done.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    events = done.events()
    assert {(each["worker"], each["step"]) for each in events[:-1]} >= {("w1", "ready"), ("w2", "ready")}
    assert [each["state"] for each in events] == ["running"] * (len(events) - 1) + ["done"]
    assert [each["name"] for each in events[-1]["workers"]] == ["w1", "w2"]
    assert events[-1]["workers"][0]["order"]["model"] == "next"


async def test_events_of_one_that_fails_end_with_the_reason(headquarters: Open) -> None:
    (worker,) = serving("w1")
    worker.broken.add("next")
    here = await headquarters(worker)
    await here.all_announced()
    last = (await here.ask("POST", "/admin/models", {"model": "next"}, (SSE,))).events()[-1]
    assert (last["state"], last["worker"], last["message"]) == ("failed", "w1", "The engine ended: exit code 1.")
    assert last["tail"] == ["engine: loading weights", "engine: out of memory"]


async def test_who_hangs_up_does_not_end_it(headquarters: Open) -> None:
    (worker,) = serving("w1")
    worker.gate.clear()
    here = await headquarters(worker)
    await here.all_announced()
    exchange = here.exchange("POST", "/admin/models", {"model": "next"}, (SSE,))
    following = asyncio.create_task(exchange.run(here.house.gateway.app))
    await eventually(lambda: worker.now.state is WorkerState.LOADING)
    exchange.hang_up()
    await following
    worker.gate.set()
    await eventually(lambda: "next" in here.house.gateway.fleet.served)


async def test_the_page_of_models_says_who_serves_what_and_what_comes(headquarters: Open) -> None:
    workers = serving("w1", "w2")
    here = await headquarters(*workers)
    await here.all_announced()
    await workers[0].put_adapter(Adapter(name="tuned", path="/a"))
    workers[1].becomes(WorkerState.LOADING, names=("next",), engine_url=None)
    await eventually(lambda: "next" in here.house.gateway.fleet.coming and here.house.gateway.fleet.slots("tuned"))
    page = (await here.ask("GET", "/admin/models")).json()
    models = {each["name"]: (each["state"], each["workers"], each["parent"]) for each in page["models"]}
    assert models == {
        "demo": ("ready", ["w1"], None),
        "tuned": ("ready", ["w1"], "demo"),
        "next": ("coming", ["w2"], None),
    }
    assert (page["current"], page["swap"]) == (None, None)
    listing = {each["id"]: each["parent"] for each in (await here.ask("GET", "/v1/models")).json()["data"]}
    assert listing == {"demo": None, "tuned": "demo"}, "what is really served"
    assert (await here.ask("GET", "/v1/models/next")).status == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": ""},
        {"model": "x\n"},
        {"model": "x", "workers": []},
        {"model": "x", "count": 0},
        {"model": "x", "floor": -1},
        {"model": "x", "drain_s": -1},
        {"model": "x", "wiat": True},
        {"model": "x", "floor": 2},
    ],
)
async def test_a_wish_that_is_none_is_400(headquarters: Open, body: dict[str, Any]) -> None:
    workers = serving("w1", "w2")
    here = await headquarters(*workers)
    await here.all_announced()
    answer = await here.ask("POST", "/admin/models", body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


# --- workers ----------------------------------------------------------------------------------------------------------


async def test_each_worker_is_told_as_it_says_and_as_it_is_seen(headquarters: Open) -> None:
    workers = [*serving("w1"), ScriptedWorker("w2")]
    here = await headquarters(*workers)
    await here.all_announced()
    first, second = (await here.ask("GET", "/admin/workers")).json()["workers"]
    assert (first["name"], first["state"], first["address"], first["running"]) == ("w1", "ready", "http://w1:9000", 0)
    assert (second["state"], "running" in second) == ("empty", False)
    assert (await here.ask("GET", "/admin/workers/w1")).json().keys() == first.keys()
    unknown = await here.ask("GET", "/admin/workers/w9")
    assert (unknown.status, unknown.error["code"]) == (404, "unknown_worker")


async def test_one_that_is_lost_stays_on_the_page_with_the_reason(headquarters: Open) -> None:
    (worker,) = serving("w1")
    here = await headquarters(worker, settings={"WORKER_LEASE": 0.1})
    await here.all_announced()
    worker.dies(WorkerUnreachable("w1 cannot be reached."))
    await eventually(lambda: not here.house.gateway.fleet.replicas)
    row = (await here.ask("GET", "/admin/workers/w1")).json()
    assert (row["reachable"], row["reason"], row["state"]) == (False, "w1 cannot be reached.", "ready")
    drained = await here.ask("POST", "/admin/workers/w1/drain")
    assert (drained.status, drained.error["code"]) == (502, "worker_unreachable")
    refused_call = await here.house.post(asking())
    assert (refused_call.status, refused_call.headers["x-gllm-reason"]) == (503, "no_replica")


async def test_a_worker_is_drained_admitted_and_released(headquarters: Open) -> None:
    (worker,) = serving("w1")
    here = await headquarters(worker)
    await here.all_announced()
    assert (await here.ask("POST", "/admin/workers/w1/drain")).json()["state"] == "draining"
    await eventually(lambda: here.house.gateway.fleet.replicas[0].draining)
    assert (await here.ask("POST", "/admin/workers/w1/admit")).json()["state"] == "ready"
    await eventually(lambda: here.house.gateway.fleet.ready)
    assert (await here.ask("POST", "/admin/workers/w1/release", {"drain_s": 0})).json() == {"proved": True}
    await eventually(lambda: not here.house.gateway.fleet.replicas)
    assert worker.loads == []


async def test_the_log_of_an_engine_is_shown_and_followed(headquarters: Open) -> None:
    (worker,) = serving("w1")
    here = await headquarters(worker)
    await here.all_announced()
    answer = await here.ask("GET", "/admin/workers/w1/logs", lines=1)
    assert (answer.status, answer.body) == (200, b"engine: out of memory\n")
    followed = await here.ask("GET", "/admin/workers/w1/logs", lines=5, follow=1)
    assert followed.body.count(b"\n") == 2
    assert (await here.ask("GET", "/admin/workers/w1/logs", lines=-1)).status == 400
    worker.away = WorkerUnreachable()
    assert (await here.ask("GET", "/admin/workers/w1/logs", follow=1)).status == 502


async def test_a_worker_that_is_lost_while_its_log_is_followed_is_told_at_its_end(headquarters: Open) -> None:
    (worker,) = serving("w1")

    async def lost(lines: int, *, follow: bool = False) -> AsyncIterator[bytes]:
        yield b"engine: ready\n"
        raise WorkerUnreachable("w1 broke off.")

    worker.logs = lost  # type: ignore[method-assign]
    here = await headquarters(worker)
    await here.all_announced()
    followed = await here.ask("GET", "/admin/workers/w1/logs", follow=1)
    assert (followed.status, followed.body) == (200, b"engine: ready\ngllm: w1 broke off.\n")


# --- adapters ---------------------------------------------------------------------------------------------------------


async def test_an_adapter_is_on_all_that_serve_its_model_and_is_a_model_itself(headquarters: Open) -> None:
    workers = [*serving("w1", "w2"), ScriptedWorker("w3", "other")]
    here = await headquarters(*workers)
    await here.all_announced()
    put = await here.ask("POST", "/admin/adapters", {"model": "demo", "name": "org/tuned", "path": "/a"})
    assert put.json() == {"name": "org/tuned", "parent": "demo", "workers": ["w1", "w2"]}
    assert (await here.house.post(asking(model="org/tuned"))).status == 200
    assert here.house.recorder.last.replica in ("w1", "w2")
    dropped = await here.ask("DELETE", "/admin/adapters/org/tuned")
    assert (dropped.status, dropped.json()["workers"]) == (200, ["w1", "w2"])
    assert (await here.house.post(asking(model="org/tuned"))).status == 404
    unknown = await here.ask("DELETE", "/admin/adapters/org/tuned")
    assert (unknown.status, unknown.error["code"]) == (404, "unknown_adapter")


async def test_an_adapter_is_on_all_or_on_none(headquarters: Open) -> None:
    workers = serving("w1", "w2")
    workers[1].refuses_adapters = refused("The rank is too high.")
    here = await headquarters(*workers)
    await here.all_announced()
    answer = await here.ask("POST", "/admin/adapters", {"name": "tuned", "path": "/a"})
    assert (answer.status, answer.error["message"]) == (502, "The rank is too high.")
    assert [each.now.adapters for each in workers] == [(), ()]
    workers[1].refuses_adapters = NotOffered()
    assert (await here.ask("POST", "/admin/adapters", {"name": "tuned", "path": "/a"})).status == 501


async def test_an_adapter_that_cannot_take_anothers_place_leaves_it_there(headquarters: Open) -> None:
    workers = serving("w1", "w2", "w3")
    here = await headquarters(*workers)
    await here.all_announced()
    await workers[0].put_adapter(Adapter(name="tuned", path="/a"))
    await workers[1].put_adapter(Adapter(name="tuned", path="/b"))
    await eventually(lambda: here.house.gateway.members.find("w2").bears("tuned"))
    workers[2].refuses_adapters = refused("The rank is too high.")
    answer = await here.ask("POST", "/admin/adapters", {"name": "tuned", "path": "/b"})
    assert answer.status == 502
    assert [each.now.adapters for each in workers] == [
        (Adapter(name="tuned", path="/a"),),
        (Adapter(name="tuned", path="/b"),),
        (),
    ]


async def test_an_adapter_needs_a_model_and_a_name_of_its_own(headquarters: Open) -> None:
    here = await headquarters(ScriptedWorker("w1", "demo"), ScriptedWorker("w2", "other"))
    nobody = await here.ask("POST", "/admin/adapters", {"name": "tuned", "path": "/a"})
    assert (nobody.status, nobody.error["code"]) == (503, "no_workers")
    await here.all_announced()
    for body, status, param in (
        ({"name": "tuned", "path": "/a"}, 400, "model"),
        ({"name": "tuned", "path": "/a", "model": "third"}, 404, "model"),
        ({"name": "other", "path": "/a", "model": "demo"}, 400, "name"),
    ):
        answer = await here.ask("POST", "/admin/adapters", body)
        assert (answer.status, answer.error["param"]) == (status, param)


# --- calls, and what is told ------------------------------------------------------------------------------------------


async def test_calls_that_come_during_a_swap_are_answered_by_the_model_they_name(headquarters: Open) -> None:
    workers = serving("w1", "w2")
    here = await headquarters(*workers)
    await here.all_announced()
    for each in workers:
        each.gate.clear()
    await here.ask("POST", "/admin/models", {"model": "next"})
    await eventually(lambda: workers[0].now.state is WorkerState.LOADING)
    waiting = asyncio.create_task(here.house.post(asking(model="next")))
    assert (await here.house.post(asking(model="demo"))).status == 200
    for each in workers:
        each.gate.set()
    assert (await waiting).status == 200
    swap = here.house.gateway.swaps.latest
    assert swap is not None
    await swap.feed.ended()
    assert swap.outcome is Outcome.DONE


async def test_operators_are_told_in_events_and_metrics(headquarters: Open) -> None:
    workers = [*serving("w1"), ScriptedWorker("w2")]
    here = await headquarters(*workers)
    await here.all_announced()
    await here.ask("POST", "/admin/models", {"model": "next", "wait": True})
    workers[0].becomes(gpus=("GPU-a", "GPU-b"))
    await eventually(lambda: here.house.gateway.members.find("w1").version == workers[0].now.version)
    workers[1].becomes(WorkerState.STOPPED, gpus=("GPU-c",))
    await eventually(lambda: WorkerChanged("w2", "stopped", "") in here.house.recorder.events)
    page = (await here.ask("GET", "/metrics")).body.decode()
    for line in (
        'gllm_workers{state="ready"} 1.0',
        'gllm_workers{state="stopped"} 1.0',
        'gllm_workers{state="loading"} 0.0',
        'gllm_gpus_leased{state="ready"} 2.0',
        'gllm_swaps_total{outcome="done"} 1.0',
        "gllm_swap_running 0.0",
        "gllm_swap_duration_seconds_count 1.0",
    ):
        assert line in page
    assert 'gllm_gpus_leased{state="stopped"}' not in page, "who has stopped holds none"
    (ended,) = (each for each in here.house.recorder.events if isinstance(each, SwapEnded))
    assert (ended.model, ended.outcome) == ("next", "done")
