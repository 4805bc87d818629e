"""Routing as clients and operators see it: a header in, a header out, a word in the log, a count in the metrics."""

import asyncio
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineFailed, EngineRefused
from app.telemetry.record import Reason
from tests.gateway.conftest import Build, House, asking
from tests.support.asgi import JSON, Exchange
from tests.support.until import until

SESSION = {"ROUTING_POLICY": "session"}
SYSTEM = {"role": "system", "content": "You are a careful assistant. " * 40}


async def ask(house: House, session: str | None = None, *, key: str | None = None, **fields: Any) -> Exchange:
    headers = list(JSON)
    if session is not None:
        headers.append((b"x-session-id", session.encode()))
    if key is not None:
        headers.append((b"idempotency-key", key.encode()))
    return await house.post(asking(**fields), headers=headers)


def four() -> dict[str, Scripted]:
    return {name: Scripted() for name in "abcd"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_session_meets_the_same_replica_again(build: Build, stream: bool) -> None:
    house = await build(settings=SESSION, **four())
    for session in ("one", "two", "three"):
        answers = [await ask(house, session, stream=stream) for _ in range(4)]
        assert len({answer.headers["x-gllm-replica"] for answer in answers}) == 1
        assert {answer.headers["x-gllm-route"] for answer in answers} == {"session"}
    assert house.recorder.last.routed_by is Reason.SESSION


async def test_a_session_whose_replica_fails_moves_and_comes_back(build: Build) -> None:
    house = await build(settings=SESSION, **four())
    home = (await ask(house, "s")).headers["x-gllm-replica"]
    house.engines[home].refuse_with = EngineFailed()
    moved = await ask(house, "s")
    assert moved.status == 200
    assert moved.headers["x-gllm-replica"] != home
    assert moved.headers["x-gllm-attempts"] == "2"
    house.engines[home].refuse_with = None
    assert (await ask(house, "s")).headers["x-gllm-replica"] == home


@pytest.mark.parametrize("session", ["", "a b", "x" * 256, "ü", '"quoted"'])
@pytest.mark.parametrize("policy", ["session", "round_robin"])
async def test_what_is_no_session_id_is_refused_whatever_the_policy(build: Build, session: str, policy: str) -> None:
    house = await build(settings={"ROUTING_POLICY": policy})
    done = await ask(house, session)
    assert (done.status, done.error["param"], done.error["code"]) == (400, "X-Session-Id", "invalid_header")


async def test_a_session_id_that_stands_twice_is_refused(house: House) -> None:
    done = await house.post(asking(), headers=[*JSON, (b"x-session-id", b"a"), (b"x-session-id", b"a")])
    assert (done.status, done.error["param"], done.error["code"]) == (400, "X-Session-Id", "ambiguous_header")


async def test_prompts_that_begin_alike_meet_where_the_policy_says_so(build: Build) -> None:
    house = await build(settings={"ROUTING_POLICY": "prefix"}, **four())
    answers = [
        await ask(house, messages=[SYSTEM, {"role": "user", "content": f"Question {number}"}]) for number in range(6)
    ]
    assert len({answer.headers["x-gllm-replica"] for answer in answers}) == 1
    assert [answer.headers["x-gllm-route"] for answer in answers] == ["load"] + ["prefix"] * 5
    page = (await house.get("/metrics")).body.decode()
    assert 'gllm_routed_total{policy="prefix",reason="prefix"} 5.0' in page
    assert 'gllm_routed_total{policy="prefix",reason="load"} 1.0' in page
    assert 'gllm_prompt_tokens_total{model="demo"} 42.0' in page


@pytest.mark.parametrize("policy", ["session", "power_of_two", "least_load", "round_robin"])
async def test_no_prompt_is_read_for_a_policy_that_does_not_look_at_it(build: Build, policy: str) -> None:
    house = await build(settings={"ROUTING_POLICY": policy}, **four())
    await ask(house, messages=[SYSTEM])
    assert [call.prefix for engine in house.engines.values() for call in engine.calls] == [()]


@pytest.mark.parametrize(
    ("policy", "names", "reason"),
    [("session", "a", "only"), ("session", "ab", "load"), ("least_load", "ab", "load"), ("round_robin", "ab", "turn")],
)
async def test_an_answer_says_why_it_came_from_there(build: Build, policy: str, names: str, reason: str) -> None:
    house = await build(settings={"ROUTING_POLICY": policy}, **{name: Scripted() for name in names})
    done = await ask(house)
    assert done.headers["x-gllm-route"] == reason
    assert house.recorder.last.routed_by == reason


async def test_an_answer_made_before_was_routed_before(build: Build) -> None:
    house = await build(settings=SESSION, **four())
    first, again = [await ask(house, "s", key="k") for _ in range(2)]
    assert first.headers["x-gllm-route"] == "session"
    assert "x-gllm-route" not in again.headers
    assert house.recorder.last.routed_by is None


@pytest.mark.parametrize("error", [None, EngineRefused(), EngineFailed()], ids=repr)
async def test_load_is_back_whatever_became_of_the_call(build: Build, error: Any) -> None:
    house = await build(settings=SESSION, a=Scripted(refuse_with=error), b=Scripted(refuse_with=error))
    await ask(house, "s", max_tokens=500)
    assert [replica.load for replica in house.gateway.fleet.replicas] == [0, 0]


async def test_while_a_call_runs_its_replica_has_its_cost_to_do(build: Build) -> None:
    house = await build(only=Scripted(stall_at=1))
    exchange = Exchange("/v1/chat/completions", asking(max_tokens=500, n=2, stream=True))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(exchange.run(house.gateway.app))
        await until(lambda: house.engine.running == 1)
        replica = house.gateway.fleet.replicas[0]
        assert replica.load > 2 * 2 * 500
        assert replica.sequences == 2
        exchange.hang_up()
    assert (replica.load, replica.sequences) == (0, 0)
