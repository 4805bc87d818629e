"""The journal: what a call met on its way can be asked for afterwards, in facts and in sentences."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.cluster.fleet import Prospect
from app.engines.scripted import Scripted
from app.errors import EngineFailed, EngineRefused, Outcome
from app.gateway.siblings import Family
from app.reliability.retry import Retry
from app.telemetry.explanation import Explanation, Requests
from app.telemetry.story import MOST_CANDIDATES, NotRetried
from gllm.cli.sentences import told
from tests.gateway.conftest import CHAT, Build, House, asking
from tests.gateway.test_admission import ONE_AT_A_TIME, Crowd, Hosts, stalling
from tests.gateway.test_idempotency import asks, begin, idle, keyed, pass_time
from tests.gateway.test_internal import served
from tests.gateway.test_takeover import asking as taken_over
from tests.gateway.test_takeover import dying, living, pair
from tests.support.asgi import JSON, Exchange
from tests.support.clock import FakeClock
from tests.support.ports import free_port
from tests.support.tenancy import ADMIN, signed, write_tenants
from tests.support.until import until


async def get(house: House, path: str, query: str = "", tenant: str = "") -> Exchange:
    headers = [(name.encode(), value.encode()) for name, value in (signed(tenant) if tenant else {}).items()]
    exchange = Exchange(path, method="GET", headers=headers)
    exchange.scope["query_string"] = query.encode()
    return await exchange.run(house.gateway.app)


async def listed(house: House, query: str = "", tenant: str = "") -> Requests:
    page = await get(house, "/admin/requests", query, tenant)
    assert page.status == 200, page.body
    return msgspec.json.decode(page.body, type=Requests)


async def explained(house: House, request_id: str, tenant: str = "") -> tuple[Explanation, str]:
    page = await get(house, f"/admin/requests/{request_id}", tenant=tenant)
    assert page.status == 200, page.body
    assert page.headers["cache-control"] == "no-store"
    explanation = msgspec.json.decode(page.body, type=Explanation)
    return explanation, "\n".join(told(explanation))


async def of(house: House, exchange: Exchange, tenant: str = "") -> tuple[Explanation, str]:
    return await explained(house, exchange.headers["x-request-id"], tenant)


# --- how it went ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_of_a_served_call_it_is_told_where_it_went_what_it_took_and_what_it_used(
    build: Build, stream: bool
) -> None:
    house = await build(a=Scripted(), b=Scripted())
    call, text = await of(house, await house.post(asking(stream=stream, max_tokens=9)))
    assert (call.state, call.outcome, call.status, call.model, call.stream) == ("ended", "ok", 200, "demo", stream)
    (tried,) = call.tried
    assert (tried.replica, tried.reason, tried.free, tried.of) == ("a", "load", 2, 2)
    assert [(each.replica, each.running, each.tokens, each.against) for each in tried.candidates] == [
        ("a", 0, 0, ""),
        ("b", 0, 0, ""),
    ]
    assert call.usage is not None
    assert (call.usage.prompt_tokens, call.usage.completion_tokens, call.usage.guessed) == (7, 4, False)
    assert call.asked is not None
    assert (call.asked.max_tokens, call.asked.keyed, call.asked.allowed_ms > 1e3) == (9, False, True)
    assert call.line == []
    spent = call.spent
    assert None not in (spent.intake, spent.limits, spent.route, spent.engine, spent.overhead)
    assert (spent.stream is not None) is stream
    assert "attempt 1 on a: it had less to do than the others that were looked at (load)" in text
    assert "7 tokens read, 4 made" in text
    assert "its tenant has no limits" in text
    assert "Time: " in text


async def test_a_call_that_is_tried_elsewhere_shows_both_attempts(build: Build) -> None:
    sick = Scripted(refuse_with=EngineFailed())
    house = await build(settings={"ROUTING_POLICY": "round_robin"}, sick=sick, well=Scripted())
    call, text = await of(house, await house.post(asking()))
    assert [(each.replica, each.error) for each in call.tried] == [("sick", "EngineFailed"), ("well", "")]
    assert {each.replica: each.against for each in call.tried[1].candidates} == {"sick": "tried already", "well": ""}
    assert (call.attempts, call.replica, call.not_retried) == (2, "well", None)
    assert call.spent.between == pytest.approx(call.tried[1].began_ms - call.tried[0].began_ms, abs=1)
    assert "sick failed after" in text
    assert "between attempts" in text
    assert "attempt 2 on well: no other replica could take it (only)" in text


async def test_a_stream_that_went_on_elsewhere_says_so(build: Build) -> None:
    house = await pair(build, a=dying(break_at=4), b=living())
    call, text = await of(house, await house.post(taken_over(CHAT)))
    assert (call.outcome, call.taken_over, [each.replica for each in call.tried]) == ("ok", 1, ["a", "b"])
    assert "another replica went on with its stream" in text


@pytest.mark.parametrize(
    ("engines", "settings", "why"),
    [
        ({"only": Scripted(refuse_with=EngineFailed())}, {}, NotRetried.NO_OTHER),
        ({"only": Scripted(refuse_with=EngineRefused(param="tools"))}, {}, NotRetried.USELESS),
        ({"only": Scripted(break_at=2)}, {"TAKEOVER": False}, NotRetried.BEGUN),
        ({name: Scripted(refuse_with=EngineFailed()) for name in "abcdef"}, {}, NotRetried.ATTEMPTS),
        (
            {name: Scripted(refuse_with=EngineFailed()) for name in "ab"},
            {"RETRY_BUDGET": 0},
            NotRetried.BUDGET_OR_TIME,
        ),
    ],
    ids=lambda value: value.value if isinstance(value, NotRetried) else "",
)
async def test_a_failure_says_why_it_was_the_last(
    build: Build, engines: dict[str, Scripted], settings: dict[str, Any], why: NotRetried
) -> None:
    house = await build(settings=settings, **engines)
    call, text = await of(house, await house.post(asking(stream=True)))
    assert call.outcome in ("upstream_failed", "interrupted", "client_error")
    assert call.not_retried is why
    assert "It was not tried once more: " in text
    assert f"Why: {call.code}." in text


async def test_what_speaks_against_a_replica_is_said(build: Build) -> None:
    house = await build(
        settings={"MAX_CONCURRENT_REQUESTS": 1, "CIRCUIT_FAILURES": 1}, **{name: stalling() for name in "abcd"}
    )
    a, b, c, _ = house.gateway.fleet.replicas
    house.gateway.fleet.failed(b, "does not answer")
    c.circuit.failed(c.circuit.entered())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        last = await crowd.running()
        call, text = await explained(house, (await listed(house)).requests[0].id)
        for engine in house.engines.values():
            engine.go_on.set()
    assert last.status == 200
    assert (call.state, call.tried[0].running, call.tried[0].free, call.tried[0].of) == ("running", True, 1, 4)
    assert {each.replica: each.against for each in call.tried[0].candidates} == {
        a.name: "full",
        "b": "failing",
        "c": "circuit open",
        "d": "",
    }
    assert "still running" in text.splitlines()[0]


async def test_of_many_replicas_a_few_are_shown_and_the_chosen_one_among_them(build: Build) -> None:
    house = await build(**{f"r{number:02}": stalling() for number in range(12)})
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        for _ in range(12):
            await crowd.running()
        for engine in house.engines.values():
            engine.go_on.set()
    for each in (await listed(house)).requests:
        call, text = await explained(house, each.id)
        assert len(call.tried[0].candidates) == MOST_CANDIDATES
        assert call.replica in {candidate.replica for candidate in call.tried[0].candidates}
        assert "and 4 more; 12 of 12 could be chosen" in text


async def test_a_draining_replica_that_serves_its_line_is_the_chosen_one(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        waits = await crowd.waiting()
        house.gateway.fleet.drain(house.gateway.fleet.replicas[0])
        house.engine.go_on.set()
    call, _ = await of(house, waits)
    assert [(each.replica, each.against) for each in call.tried[0].candidates] == [("only", "")]


# --- the line -------------------------------------------------------------------------------------------------------


async def test_one_that_waits_has_a_place_and_one_that_waited_says_who_was_before_it(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        await crowd.waiting()
        last = await crowd.waiting()
        newest = (await listed(house)).requests[0]
        assert newest.state == "waiting"
        call, text = await explained(house, newest.id)
        assert (call.place, call.places) == (2, 2)
        assert "still waiting, place 2 of 2" in text.splitlines()[0]
        assert "its turn" not in text
        house.engine.go_on.set()
    call, text = await of(house, last)
    (stay,) = call.line
    assert (stay.ahead, stay.waiting, stay.again, stay.tenants) == (1, 1, False, 1)
    assert (call.place, call.places) == (None, None)
    assert call.spent.queue > 0
    assert "no replica had room: 1 ahead of it in the line, 1 waiting in all" in text
    assert "nobody of a higher class or another tenant was before it" in text


async def test_among_tenants_it_is_said_that_its_own_had_been_served_least(build: Build) -> None:
    house = await build(settings=ONE_AT_A_TIME, only=stalling())
    door, house.gateway.edge._door = house.gateway.edge._door, Hosts()  # type: ignore[assignment]
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(headers={b"host": b"flood"})
        flood = await crowd.waiting(headers={b"host": b"flood"})
        await crowd.waiting(headers={b"host": b"light"})
        house.gateway.edge._door = door
        house.engine.go_on.set()
    call, text = await of(house, flood)
    assert (call.tenant, call.line[0].tenants) == ("flood", 2)
    assert "of 2 tenants in its class its own had been served least, by weight" in text


async def test_one_whose_replica_failed_goes_back_ahead_of_the_others(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the next one takes its place, and fails there too: by a pause that dice choose, it would be back the sooner
    monkeypatch.setattr("app.gateway.app.Retry", partial(Retry, first_pause_s=0.0))
    house = await build(settings=ONE_AT_A_TIME, a=stalling(break_at=0), b=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        failing = await crowd.running()
        await crowd.running()
        await crowd.waiting()
        house.engines["a"].go_on.set()
        await until(lambda: len(house.gateway.admission.line("demo").returning) > 0)
        request_id = house.gateway.admission.line("demo").returning[0].call.id
        call, text = await explained(house, request_id)
        assert (call.state, call.place) == ("waiting", 1)
        house.engines["b"].go_on.set()
    call, text = await of(house, failing)
    assert [stay.again for stay in call.line] == [True]
    assert [each.replica for each in call.tried] == ["a", "b"]
    assert "back into the line, ahead of" in text


async def test_a_call_for_a_model_that_is_being_loaded_waits_and_is_then_served(build: Build) -> None:
    house = await build(only=Scripted())
    fleet = house.gateway.fleet
    fleet.foretell("w1", Prospect(("next",), coming=True, slots=4, ready_at=house.gateway.clock() + 20))
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        waits = await crowd.waiting(model="next")
        call, text = await explained(house, (await listed(house)).requests[0].id)
        assert (call.state, call.place, call.tried) == ("waiting", 1, [])
        assert 15e3 < call.line[0].expected_ms <= 20e3
        fleet.answered(fleet.replicas[0], {"demo": 2_048, "next": 2_048})
    call, text = await of(house, waits)
    assert (call.outcome, call.line[0].ahead, call.replica) == ("ok", 0, "only")
    assert "expected to wait " in text


# --- why it was refused -----------------------------------------------------------------------------------------------


async def test_a_full_line_says_how_many_were_in_it(build: Build) -> None:
    house = await build(settings={**ONE_AT_A_TIME, "QUEUE_CAPACITY": 1}, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running()
        await crowd.waiting()
        refused = await house.post(asking())
        house.engine.go_on.set()
    call, text = await of(house, refused)
    assert (call.outcome, call.code, call.status, call.tried) == ("queue_full", "queue_full", 503, [])
    assert call.retry_after_s is not None
    assert call.line[0].waited_ms == 0
    assert "out of the line" not in text
    assert "Waiting already: 1, and none of them with less right to a place." in text
    assert "Its client was told to come again in 1.00 s (Retry-After)." in text


async def test_one_that_gave_up_its_place_says_to_whom(build: Build) -> None:
    house = await build(settings={**ONE_AT_A_TIME, "QUEUE_CAPACITY": 2}, only=stalling())
    door, house.gateway.edge._door = house.gateway.edge._door, Hosts()  # type: ignore[assignment]
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        await crowd.running(headers={b"host": b"flood"})
        await crowd.waiting(headers={b"host": b"flood"})
        last = await crowd.waiting(headers={b"host": b"flood"})
        light = crowd.send(headers={b"host": b"light"})
        await until(lambda: last.ended)
        house.engine.go_on.set()
    house.gateway.edge._door = door
    call, text = await of(house, last)
    assert (call.code, call.line[0].displaced_by) == ("displaced", light.headers["x-request-id"])
    assert f"its place was given to request {light.headers['x-request-id']}" in text


async def test_one_that_would_come_too_late_says_what_it_would_have_needed_and_what_it_had(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted())
    house.gateway.fleet.foretell("w1", Prospect(("next",), coming=True, slots=4, ready_at=clock() + 60.0))
    hasty = await house.post(asking(model="next"), headers=[*JSON, (b"x-request-timeout-ms", b"5000")])
    call, text = await of(house, hasty)
    assert (call.code, call.line[0].waited_ms) == ("would_miss_deadline", 0)
    assert (call.line[0].needed_ms, call.line[0].left_ms) == (66_000, 5_000)
    assert "It would have needed up to 66.00 s (60.00 s of waiting, with 0 ahead of it)" in text
    assert "and had 5.00 s: with more time, or a shorter line, it would have been let in." in text
    house.gateway.fleet.foretell("w1", None)


async def test_one_whose_time_ended_in_the_line_says_how_long_it_waited(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted())
    house.gateway.fleet.foretell("w1", Prospect(("next",), coming=True, slots=4))
    async with asyncio.TaskGroup() as tasks:
        late = await Crowd(house, tasks).waiting(model="next", headers={b"x-request-timeout-ms": b"1000"})
        clock.advance(1.0)
        house.gateway.watch.sweep()
    call, text = await of(house, late)
    assert (call.code, call.line[0].waited_ms, call.outcome) == ("model_loading", 1_000, "deadline")
    assert "out of the line after 1.00 s of waiting: its turn had not come" in text
    house.gateway.fleet.foretell("w1", None)


LIMITED = {"tight": {"requests_per_minute": 1}, "frugal": {"tokens_per_minute": 200}}


@pytest.fixture
async def limited(build: Build, tmp_path: Path) -> House:
    write_tenants(tmp_path / "tenants.toml", LIMITED)
    return await build(settings={"TENANTS_FILE": tmp_path / "tenants.toml"})


def of_tenant(tenant: str) -> list[tuple[bytes, bytes]]:
    return [*JSON, *((name.encode(), value.encode()) for name, value in signed(tenant).items())]


async def test_a_limit_that_was_met_says_which_and_when_there_is_enough(limited: House) -> None:
    await limited.post(asking(), headers=of_tenant("tight"))
    call, text = await of(limited, await limited.post(asking(), headers=of_tenant("tight")), ADMIN)
    assert (call.outcome, call.status, call.tenant, call.tried) == ("rate_limited", 429, "tight", [])
    (limit,) = call.limits
    assert (limit.kind, limit.limit, limit.left, limit.needed) == ("requests", 1, 0, 1)
    assert limit.allows_in_s == pytest.approx(60, abs=2)
    assert call.tokens is not None
    assert (call.tokens.let_in, call.tokens.reserved, call.tokens.given_back) == (False, 0, None)
    assert "requests a minute: 0 left of 1, whole again in" in text
    assert "1 needed; enough in" in text


async def test_what_was_reserved_is_settled_by_what_was_used(limited: House) -> None:
    call, text = await of(limited, await limited.post(asking(max_tokens=50), headers=of_tenant("frugal")), ADMIN)
    tokens = call.tokens
    assert tokens is not None
    assert tokens.reserved == tokens.prompt + tokens.output
    assert (tokens.let_in, tokens.used, tokens.given_back) == (True, 11, tokens.reserved - 11)
    (limit,) = call.limits
    assert limit.left == 200 - tokens.reserved
    assert f"Tokens: {tokens.reserved} reserved, 11 used, {tokens.given_back} given back." in text


async def test_one_that_no_limit_ever_allows_says_so(limited: House) -> None:
    body = asking(max_tokens=1_000)
    call, text = await of(limited, await limited.post(body, headers=of_tenant("frugal")), ADMIN)
    assert (call.error, call.should_retry) == ("LargerThanLimit", False)
    assert "Its client was told that the same request again would not help" in text


async def test_what_could_not_be_understood_says_which_field(house: House) -> None:
    call, text = await of(house, await house.post(asking(temperature=9)))
    assert (call.outcome, call.param, call.asked, call.tokens, call.tried) == (
        "client_error",
        "temperature",
        None,
        None,
        [],
    )
    assert "Why: invalid_value. temperature: " in text


# --- clients that go, and come again --------------------------------------------------------------------------------


async def test_a_hang_up_says_how_far_the_answer_had_come(house: House) -> None:
    await house.post(asking(stream=True), hang_up_after=1)
    (summary,) = (await listed(house)).requests
    assert (summary.outcome, summary.status) == (Outcome.CLIENT_GONE, 499)
    call, text = await explained(house, summary.id)
    assert call.events >= 1
    assert call.usage is not None
    assert call.usage.guessed
    assert "client_gone (499)" in text
    assert "by our own guess" in text


async def test_a_replay_says_for_which_request_its_answer_was_made(house: House) -> None:
    first = await house.post(asking(), headers=keyed())
    again = await house.post(asking(), headers=keyed())
    call, text = await of(house, again)
    assert (call.idempotency, call.answered_by) == ("replayed", first.headers["x-request-id"])
    assert (call.tried, call.tokens) == ([], None)
    assert f"it got the answer that is kept (made for {call.answered_by})" in text
    original, text = await of(house, first)
    assert (original.idempotency, original.answered_by, len(original.tried)) == ("first", "", 1)
    other, text = await of(house, await house.post(asking(user="other"), headers=keyed()))
    assert (other.idempotency, other.code, other.status) == ("mismatch", "idempotency_key_reused", 422)
    assert "the key stands for another request" in text


async def test_a_run_that_outlives_its_client_goes_on_being_told(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted(stall_at=1))
    exchange = asks()
    task = begin(house, exchange)
    await until(lambda: house.engine.running == 1)
    exchange.hang_up()
    await task
    (gone,) = (await listed(house)).requests
    call, _ = await explained(house, gone.id)
    assert (call.outcome, call.tried[0].running) == ("client_gone", True)
    house.engine.go_on.set()
    await idle(house)
    call, _ = await explained(house, gone.id)
    assert call.tried[0].running is False
    assert call.usage is not None
    await pass_time(clock, house, 1.0)


# --- what is kept ---------------------------------------------------------------------------------------------------


async def test_an_id_that_is_not_known_is_404_and_says_what_is_kept(build: Build) -> None:
    house = await build(settings={"JOURNAL_REQUESTS": 2})
    ids = [(await house.post(asking())).headers["x-request-id"] for _ in range(3)]
    fallen_out = await get(house, f"/admin/requests/{ids[0]}")
    assert (fallen_out.status, fallen_out.error["code"]) == (404, "not_found")
    assert "keeps the last 2 that have ended (JOURNAL_REQUESTS)" in fallen_out.error["message"]
    assert [each.id for each in (await listed(house)).requests] == [ids[2], ids[1]]
    stranger = await get(house, "/admin/requests/mine-17")
    assert (stranger.status, stranger.error["message"]) == (404, fallen_out.error["message"])


async def test_an_id_of_another_gateway_says_so(build: Build) -> None:
    house, other = await build(), await build()
    other.gateway.edge._name = "zzzz"
    request_id = "req-0f0f" + 20 * "a"
    assert house.gateway.name != "0f0f"
    refused = await get(house, f"/admin/requests/{request_id}")
    assert refused.status == 404
    assert f"its id is of gateway '0f0f', and this is gateway '{house.gateway.name}'" in refused.error["message"]
    made = (await house.post(asking())).headers["x-request-id"]
    assert made.startswith(f"req-{house.gateway.name}")
    assert len(made) == len(request_id)


async def test_what_runs_is_kept_beside_what_has_ended(build: Build) -> None:
    house = await build(settings={"JOURNAL_REQUESTS": 1}, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(house, tasks)
        for _ in range(3):
            await crowd.running()
        await house.post(b"{")
        await house.post(b"{")
        states = [each.state for each in (await listed(house)).requests]
        assert states == ["ended", "running", "running", "running"]
        house.engine.go_on.set()
    assert house.gateway.observers.journal is not None
    assert len(house.gateway.observers.journal) == 1


async def test_probes_pages_and_the_journal_itself_push_no_call_out(build: Build) -> None:
    house = await build(settings={"JOURNAL_REQUESTS": 1})
    await house.post(asking())
    for path in ("/health", "/metrics", "/v1/models", "/admin/usage", "/nothing"):
        await house.get(path)
    assert [each.endpoint for each in (await listed(house)).requests] == [CHAT]


async def test_0_keeps_nothing_and_says_so(build: Build) -> None:
    house = await build(settings={"JOURNAL_REQUESTS": 0})
    request_id = (await house.post(asking())).headers["x-request-id"]
    assert house.gateway.observers.journal is None
    assert house.recorder.last.story is None
    assert house.recorder.last.tries[0].options is None
    for path in ("/admin/requests", f"/admin/requests/{request_id}"):
        refused = await get(house, path)
        assert (refused.status, refused.error["message"]) == (
            404,
            "This gateway keeps no journal: JOURNAL_REQUESTS is 0.",
        )


async def test_of_two_calls_with_one_id_the_newest_is_told(house: House) -> None:
    headers = [*JSON, (b"x-request-id", b"mine")]
    await house.post(asking(), headers=headers)
    await house.post(b"{", headers=headers)
    call, _ = await explained(house, "mine")
    assert call.status == 400


async def test_the_list_can_be_narrowed(limited: House) -> None:
    for tenant in ("tight", "tight", "frugal"):
        await limited.post(asking(max_tokens=9), headers=of_tenant(tenant))
    assert [each.tenant for each in (await listed(limited, "tenant=tight", ADMIN)).requests] == ["tight", "tight"]
    (refused,) = (await listed(limited, "outcome=rate_limited", ADMIN)).requests
    assert (refused.tenant, refused.code, refused.prompt_tokens) == ("tight", "request_rate", None)
    assert len((await listed(limited, "limit=2", ADMIN)).requests) == 2
    assert (await listed(limited, "model=other", ADMIN)).requests == []


@pytest.mark.parametrize(
    ("query", "param"),
    [("outcom=ok", "outcom"), ("outcome=fine", "outcome"), ("limit=0", "limit"), ("limit=x", "limit")],
)
async def test_a_filter_that_is_none_is_refused(house: House, query: str, param: str) -> None:
    refused = await get(house, "/admin/requests", query)
    assert (refused.status, refused.error["param"]) == (400, param)


# --- who may ask, and what is never told ----------------------------------------------------------------------------


async def test_only_an_admin_may_ask(limited: House) -> None:
    request_id = (await limited.post(asking(), headers=of_tenant("frugal"))).headers["x-request-id"]
    for path in ("/admin/requests", f"/admin/requests/{request_id}"):
        assert (await get(limited, path)).status == 401
        assert (await get(limited, path, tenant="frugal")).status == 403
        assert (await get(limited, path, tenant=ADMIN)).status == 200


async def test_no_prompt_key_or_answer_is_ever_told(limited: House) -> None:
    canary = {"role": "user", "content": "canary-prompt"}
    for body in (
        asking(messages=[canary]),
        asking(messages=[canary], stream=True, user="canary-user"),
        asking(messages=[{**canary, "role": "canary-role"}]),
        asking(messages="canary-prompt"),
        asking(messages=[canary], tools="canary-tools"),
        {"canary-field": "canary-prompt"},
    ):
        for headers in (of_tenant("frugal"), [*of_tenant(ADMIN), (b"idempotency-key", b"canary-key")]):
            session = (b"x-session-id", b"canary-session")
            await limited.post(body, headers=[*headers, session])
    page = await get(limited, "/admin/requests", tenant=ADMIN)
    pages = [page.body.decode()]
    for each in page.json()["requests"]:
        call, text = await explained(limited, each["id"], ADMIN)
        pages += [msgspec.json.encode(call).decode(), text]
    assert len(pages) == 25
    assert [each for each in pages if "canary" in each or "Hello, world" in each] == []


# --- one of several processes ---------------------------------------------------------------------------------------


async def test_a_process_that_does_not_answer_is_named(build: Build) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    house = await build(family=Family((nobody,), "key"))
    served = await house.post(asking())
    call, _ = await of(house, served)
    page = await listed(house)
    assert ([each.id for each in page.requests], page.silent) == ([call.id], (nobody,))
    missed = await get(house, "/admin/requests/req-1")
    assert missed.status == 404
    assert f"as far as was heard: {nobody} did not answer.".encode() in missed.body


async def test_of_all_processes_calls_the_newest_come_first(build: Build, tmp_path: Path) -> None:
    named = [(b"x-request-id", b"same")]
    there = await build(settings={"STATE_DIR": tmp_path / "there"}, family=Family((), "key"))
    async with served(there) as port:
        here = await build(family=Family((f"http://127.0.0.1:{port}",), "key"))
        await here.post(asking(), headers=[*JSON, *named])
        await there.post(asking(), headers=[*JSON, *named])
        last = await here.post(asking())
        page = await listed(here)
        assert [each.id for each in page.requests] == [last.headers["x-request-id"], "same", "same"]
        assert (page.kept, page.silent) == (2_000, ())
        assert [each.id for each in (await listed(here, "limit=1")).requests] == [last.headers["x-request-id"]]
        call, _ = await explained(here, "same")
        assert call.gateway == there.gateway.name
        missed = await get(here, "/admin/requests/req-" + "0" * 24)
        both = f"the processes here are '{here.gateway.name}', '{there.gateway.name}'"
        assert both.encode() in missed.body
