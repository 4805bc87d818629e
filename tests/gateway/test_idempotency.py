"""One key, one execution, the same answer for all who ask with it: finished, running, cut off and come back."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineFailed, Outcome
from app.generation import Usage
from tests.gateway.conftest import CHAT, Build, House, asking
from tests.support.asgi import JSON, Exchange
from tests.support.clock import FakeClock
from tests.support.until import until

KEY = "order-17"


def keyed(key: str | bytes = KEY, *, seen: int | None = None, **more: str) -> list[tuple[bytes, bytes]]:
    headers = [*JSON, (b"idempotency-key", key if isinstance(key, bytes) else key.encode())]
    if seen is not None:
        headers.append((b"last-event-id", str(seen).encode()))
    return headers + [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]


def asks(stream: bool = True, *, seen: int | None = None, key: str = KEY, **how: Any) -> Exchange:
    """With a key."""
    return Exchange(CHAT, asking(stream=stream), headers=keyed(key, seen=seen), **how)


def begin(house: House, exchange: Exchange) -> asyncio.Task[Exchange]:
    return asyncio.create_task(exchange.run(house.gateway.app))


def executions(house: House) -> int:
    return sum(len(engine.calls) for engine in house.engines.values())


async def idle(house: House) -> None:
    await until(lambda: len(house.gateway.replays) == 0)


async def pass_time(clock: FakeClock, house: House, seconds: float) -> None:
    clock.advance(seconds)
    house.gateway.watch.sweep()


# --- finished -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_finished_answer_comes_again_byte_for_byte_and_is_not_made_again(house: House, stream: bool) -> None:
    once = await house.post(asking(stream=stream), headers=keyed())
    again = await house.post(asking(stream=stream), headers=keyed())
    assert again.body == once.body
    assert executions(house) == 1
    assert "idempotent-replayed" not in once.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] != once.headers["x-request-id"]
    for name in ("content-type", "x-gllm-replica", "x-gllm-attempts"):
        assert again.headers[name] == once.headers[name]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_used_is_told_once(house: House, stream: bool) -> None:
    for _ in range(2):
        await house.post(asking(stream=stream), headers=keyed())
    once, again = house.recorder.records
    assert (once.usage, once.replayed) == (Usage(7, 4), False)
    assert (again.usage, again.replayed, again.replica) == (None, True, "only")
    assert house.gateway.admission.entered == 1


async def test_a_quoted_key_is_the_same_key(house: House) -> None:
    await house.post(asking(), headers=keyed())
    assert (await house.post(asking(), headers=keyed(f'"{KEY}"'))).headers["idempotent-replayed"] == "true"


async def test_the_same_request_may_be_written_differently(house: House) -> None:
    await house.post(b'{"model":"demo","messages":[{"role":"user","content":"Hi"}]}', headers=keyed())
    other = b' { "messages": [ {"content": "\\u0048i", "role": "user"} ], "model": "demo" }'
    assert (await house.post(other, headers=keyed())).headers["idempotent-replayed"] == "true"


async def test_a_path_without_v1_is_the_same_route(house: House) -> None:
    await house.post(asking(), headers=keyed())
    again = await house.post(asking(), path="/chat/completions", headers=keyed())
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("other", [{"temperature": 1}, {"stream": True}, {"stream": None}])
async def test_a_key_that_was_used_for_another_body_is_422_and_the_first_answer_stays(
    build: Build, running: bool, other: dict[str, Any]
) -> None:
    house = await build(only=Scripted(stall_at=0 if running else None))
    first = begin(house, asks(stream=False))
    await until(lambda: house.engine.running == 1 if running else first.done())
    refused = await house.post(asking(**other), headers=keyed())
    assert (refused.status, refused.error["code"]) == (422, "idempotency_key_reused")
    assert refused.error["type"] == "idempotency_error"
    house.engine.go_on.set()
    assert (await house.post(asking(stream=False), headers=keyed())).body == (await first).body
    assert executions(house) == 1


async def test_another_route_has_keys_of_its_own(house: House) -> None:
    await house.post(asking(), headers=keyed())
    other = await house.post({"model": "demo", "prompt": "Hi"}, path="/v1/completions", headers=keyed())
    assert (other.status, executions(house)) == (200, 2)


async def test_without_a_key_streams_have_no_ids_and_nothing_is_kept(house: House) -> None:
    once, again = [await house.post(asking(stream=True)) for _ in range(2)]
    assert b"id: " not in once.body
    assert executions(house) == 2
    assert "idempotent-replayed" not in again.headers


async def test_with_a_key_the_events_are_numbered_and_otherwise_as_ever(house: House) -> None:
    plain = await house.post(asking(stream=True))
    house.engine.calls.clear()
    numbered = await house.post(asking(stream=True), headers=keyed())
    events = numbered.body.split(b"\n\n")[:-1]
    assert [event.split(b"\n")[0] for event in events] == [b"id: %d" % n for n in range(1, len(events) + 1)]
    without = b"".join(event.split(b"\n", 1)[1] + b"\n\n" for event in events)
    ids = [record.id.encode() for record in house.recorder.records]
    assert without.replace(ids[1], ids[0]) == plain.body


# --- bad headers --------------------------------------------------------------------------------------------------

BAD_KEYS = [b"", b'""', b'"', b'"open', b"x" * 256, b"a b", b"a\tb", b"\x00", b"\xc3\xa9", b'"a";q=1', b"a,b"]


@pytest.mark.parametrize("key", BAD_KEYS, ids=repr)
async def test_a_key_that_is_none_is_refused(house: House, key: bytes) -> None:
    done = await house.post(asking(), headers=keyed(key))
    assert (done.status, done.error["code"]) == (400, "invalid_idempotency_key")
    assert done.error["param"] == "Idempotency-Key"
    assert executions(house) == 0


async def test_two_keys_are_refused_even_if_they_are_equal(house: House) -> None:
    done = await house.post(asking(), headers=[*keyed(), *keyed()[-1:]])
    assert (done.status, done.error["code"]) == (400, "invalid_idempotency_key")
    assert done.error["param"] == "Idempotency-Key"


@pytest.mark.parametrize("said", [b"", b"-1", b"1.5", b"abc", b" 1", b"1" * 10, b"\xb2"])
async def test_a_last_event_id_that_is_no_number_is_refused(house: House, said: bytes) -> None:
    done = await house.post(asking(stream=True), headers=[*keyed(), (b"last-event-id", said)])
    assert (done.status, done.error["param"]) == (400, "Last-Event-ID")


async def test_a_last_event_id_beyond_the_end_is_refused(house: House) -> None:
    await house.post(asking(stream=True), headers=keyed())
    done = await house.post(asking(stream=True), headers=keyed(seen=1_000))
    assert (done.status, done.error["param"]) == (400, "Last-Event-ID")


async def test_a_last_event_id_without_a_key_says_nothing(house: House) -> None:
    done = await house.post(asking(stream=True), headers=[*JSON, (b"last-event-id", b"nonsense")])
    assert (done.status, b"id: " in done.body) == (200, False)


# --- running ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hundred_twins_are_one_execution_and_a_hundred_equal_answers(build: Build, stream: bool) -> None:
    house = await build(only=Scripted(stall_at=0))
    twins = [begin(house, asks(stream)) for _ in range(100)]
    await until(lambda: house.engine.running == 1)
    house.engine.go_on.set()
    done = await asyncio.gather(*twins)
    assert executions(house) == 1
    assert {twin.status for twin in done} == {200}
    assert len({twin.body for twin in done}) == 1
    assert len({twin.headers["x-request-id"] for twin in done}) == 100
    assert sum("idempotent-replayed" not in twin.headers for twin in done) == 1
    assert sum(record.usage is not None for record in house.recorder.records) == 1


async def test_a_twin_gets_what_has_been_and_what_comes(build: Build) -> None:
    house = await build(only=Scripted(stall_at=3))
    first, twin = asks(), asks()
    running = begin(house, first)
    await until(lambda: len(first.blocks) == 3)
    attached = begin(house, twin)
    await until(lambda: twin.body == first.body)
    assert not twin.ended
    house.engine.go_on.set()
    await asyncio.gather(running, attached)
    assert twin.body == first.body
    assert twin.events_numbered()[-1][1] == "[DONE]"


async def test_twins_of_a_failing_run_get_its_error_and_the_key_is_free_again(build: Build) -> None:
    house = await build(only=Scripted(stall_at=2, break_at=2))
    first, twin = asks(), asks()
    running = [begin(house, first), begin(house, twin)]
    await until(lambda: len(twin.blocks) == 2)
    house.engine.go_on.set()
    await asyncio.gather(*running)
    assert twin.body == first.body
    assert twin.events_numbered()[-1][1]["error"]["code"] == "engine_interrupted"
    assert [record.outcome for record in house.recorder.records] == [Outcome.INTERRUPTED] * 2
    house.engine.break_at = None
    again = await asks().run(house.gateway.app)
    assert again.events_numbered()[-1][1] == "[DONE]"
    assert ("idempotent-replayed" in again.headers, executions(house)) == (False, 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_is_told_to_all_with_its_status_and_is_not_kept(build: Build, stream: bool) -> None:
    house = await build(only=Scripted(refuse_with=EngineFailed(), refusals=1))
    done = await asyncio.gather(*(asks(stream).run(house.gateway.app) for _ in range(5)))
    assert {(twin.status, twin.error["code"]) for twin in done} == {(502, "engine_failed")}
    assert executions(house) == 1
    assert (await asks(stream).run(house.gateway.app)).status == 200


async def test_an_attempt_that_fails_before_the_first_event_is_not_seen(build: Build) -> None:
    sick = Scripted(refuse_with=EngineFailed())
    house = await build(settings={"ROUTING_POLICY": "round_robin"}, sick=sick, well=Scripted())
    done = await asyncio.gather(*(asks().run(house.gateway.app) for _ in range(2)))
    assert {(twin.status, twin.headers["x-gllm-replica"], twin.headers["x-gllm-attempts"]) for twin in done} == {
        (200, "well", "2")
    }


async def test_where_twins_may_not_attach_they_are_told_to_come_back(build: Build) -> None:
    house = await build(settings={"IDEMPOTENCY_ATTACH": False}, only=Scripted(stall_at=1))
    first = begin(house, asks())
    await until(lambda: house.engine.running == 1)
    refused = await asks().run(house.gateway.app)
    assert (refused.status, refused.error["code"]) == (409, "idempotency_in_progress")
    assert refused.headers["retry-after"] == "1"
    house.engine.go_on.set()
    whole = (await first).body
    assert (await asks().run(house.gateway.app)).body == whole


async def test_an_unforeseen_defect_is_a_500_for_all_and_frees_the_key(build: Build) -> None:
    house = await build(only=Scripted())
    house.engine.script = lambda call: 1 / 0  # type: ignore[assignment,return-value]
    done = await asyncio.gather(*(asks().run(house.gateway.app) for _ in range(2)))
    assert {(twin.status, twin.error["code"]) for twin in done} == {(500, "internal_error")}
    house.engine.script = None
    assert (await asks().run(house.gateway.app)).status == 200


# --- cut off, and come back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", range(7))
@pytest.mark.parametrize("later", [False, True], ids=["while it runs", "when it has ended"])
async def test_cut_at_any_event_and_resumed_the_whole_is_what_it_would_have_been(
    build: Build, tmp_path: Path, frames: int, later: bool
) -> None:
    whole = (await (await build()).post(asking(stream=True), headers=[*keyed(), (b"x-request-id", b"one")])).body
    house = await build(settings={"STATE_DIR": tmp_path / "other"}, only=Scripted(stall_at=frames))
    first = asks()
    first.scope["headers"].append((b"x-request-id", b"one"))
    running = begin(house, first)
    await until(lambda: house.engine.running == 1 and first.body.count(b"\n\n") == frames)
    first.hang_up()
    await running
    assert house.recorder.last.outcome is Outcome.CLIENT_GONE
    if later:
        house.engine.go_on.set()
        await idle(house)
    second = asks(seen=frames) if frames else asks()
    resumed = begin(house, second)
    house.engine.go_on.set()
    await resumed
    assert first.body + second.body == whole
    assert second.headers["idempotent-replayed"] == "true"
    assert executions(house) == 1


async def test_who_has_it_all_gets_an_empty_rest(house: House) -> None:
    first = await asks().run(house.gateway.app)
    rest = await asks(seen=len(first.events_numbered())).run(house.gateway.app)
    assert (rest.status, rest.body, rest.ended) == (200, b"", True)


async def test_nothing_is_executed_for_a_rest_that_nobody_has(house: House) -> None:
    done = await asks(seen=2).run(house.gateway.app)
    assert (done.status, done.error["code"]) == (409, "nothing_to_resume")
    assert done.headers["x-should-retry"] == "false"
    assert executions(house) == 0
    assert (await asks().run(house.gateway.app)).status == 200


async def test_who_waits_for_a_rest_is_attached_before_it_is_there(build: Build) -> None:
    """What a client has read may be ahead of what a gateway that follows another has."""
    house = await build(only=Scripted(stall_at=2))
    first, ahead = asks(), asks(seen=4)
    tasks = [begin(house, first)]
    await until(lambda: len(first.blocks) == 2)
    tasks.append(begin(house, ahead))
    house.engine.go_on.set()
    await asyncio.gather(*tasks)
    assert first.body.endswith(ahead.body)
    assert ahead.events_numbered()[0][0] == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_nobody_comes_back_within_the_grace_time_and_the_engine_stops(build: Build, stream: bool) -> None:
    clock = FakeClock()
    house = await build(clock=clock, settings={"IDEMPOTENCY_GRACE": 20}, only=Scripted(stall_at=0))
    first = asks(stream)
    running = begin(house, first)
    await until(lambda: house.engine.running == 1)
    first.hang_up()
    await running
    await pass_time(clock, house, 19.9)
    await asyncio.sleep(0)
    assert house.engine.running == 1
    await pass_time(clock, house, 0.2)
    await idle(house)
    assert house.engine.aborted == 1
    house.engine.go_on.set()
    assert (await asks(stream).run(house.gateway.app)).status == 200
    assert executions(house) == 2


async def test_who_comes_back_stops_the_clock(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, settings={"IDEMPOTENCY_GRACE": 20}, only=Scripted(stall_at=1))
    for seconds in (0, 15, 15):
        await pass_time(clock, house, seconds)
        client = asks()
        running = begin(house, client)
        await until(lambda client=client: len(client.blocks) == 1)  # type: ignore[misc]
        await pass_time(clock, house, 100)
        client.hang_up()
        await running
    house.engine.go_on.set()
    await idle(house)
    assert executions(house) == 1


async def test_without_grace_a_hang_up_stops_the_engine_as_ever(build: Build) -> None:
    house = await build(settings={"IDEMPOTENCY_GRACE": 0}, only=Scripted(stall_at=1))
    first = asks()
    running = begin(house, first)
    await until(lambda: len(first.blocks) == 1)
    first.hang_up()
    await running
    house.gateway.watch.sweep()
    await idle(house)
    assert house.engine.aborted == 1


async def give_up(house: House, key: str = KEY, prefix: str = "/v1") -> int:
    return (await house.get(f"{prefix}/idempotency-keys/{key}", method="DELETE")).status


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_who_says_that_it_will_not_come_back_gets_no_grace_time(build: Build, stream: bool, prefix: str) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted(stall_at=1 if stream else 0))
    first = asks(stream)
    running = begin(house, first)
    await until(lambda: house.engine.running == 1)
    first.hang_up()
    await running
    await pass_time(clock, house, 1)
    assert house.engine.running == 1
    assert await give_up(house, prefix=prefix) == 204
    house.gateway.watch.sweep()
    await idle(house)
    assert house.engine.aborted == 1


async def test_a_key_is_given_up_for_its_last_reader_not_for_all(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted(stall_at=1))
    first, twin = asks(), asks()
    running = [begin(house, each) for each in (first, twin)]
    await until(lambda: len(first.blocks) == len(twin.blocks) == 1)
    assert await give_up(house) == 204
    first.hang_up()
    await running[0]
    await pass_time(clock, house, 20)
    assert house.engine.running == 1
    house.engine.go_on.set()
    await running[1]
    assert twin.events_numbered()[-1][1] == "[DONE]"


async def test_an_answer_that_is_complete_stays_when_its_key_is_given_up(house: House) -> None:
    once = await house.post(asking(), headers=keyed())
    assert await give_up(house) == 204
    assert (await house.post(asking(), headers=keyed())).body == once.body
    assert executions(house) == 1


async def test_only_a_key_can_be_given_up(house: House) -> None:
    assert await give_up(house, "nobody-uses-this") == 204
    assert await give_up(house, "a b") == 400
    assert (await house.get("/v1/idempotency-keys/x", method="GET")).status == 405


async def test_a_request_that_meets_a_run_being_ended_starts_its_own(build: Build) -> None:
    house = await build(settings={"IDEMPOTENCY_GRACE": 0}, only=Scripted(stall_at=1))
    first = asks()
    running = begin(house, first)
    await until(lambda: len(first.blocks) == 1)
    first.hang_up()
    await running
    house.gateway.watch.sweep()
    house.engine.stall_at = None
    assert (await asks().run(house.gateway.app)).events_numbered()[-1][1] == "[DONE]"
    assert executions(house) == 2


async def test_a_hang_up_of_the_first_of_two_twins_does_not_disturb_the_other(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, settings={"IDEMPOTENCY_GRACE": 1}, only=Scripted(stall_at=2))
    first, twin = asks(), asks()
    running = [begin(house, first), begin(house, twin)]
    await until(lambda: len(twin.blocks) == 2)
    first.hang_up()
    await running[0]
    await pass_time(clock, house, 60)
    house.engine.go_on.set()
    await running[1]
    assert twin.events_numbered()[-1][1] == "[DONE]"
    assert house.engine.aborted == 0


@pytest.mark.parametrize("steps", range(12))
async def test_a_hang_up_at_any_step_of_the_way_in_leaves_a_key_that_works(build: Build, steps: int) -> None:
    """Also between the claim and the start."""
    house = await build(settings={"IDEMPOTENCY_GRACE": 0})
    first = asks(stream=False)
    running = begin(house, first)
    for _ in range(steps):
        await asyncio.sleep(0)
    first.hang_up()
    await running
    house.gateway.watch.sweep()
    done = await asks(stream=False).run(house.gateway.app)
    assert (done.status, done.json()["choices"][0]["message"]["content"]) == (200, "Hello, world.")


# --- time, and the end --------------------------------------------------------------------------------------------


async def test_a_twin_with_less_time_gives_up_alone(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted(stall_at=1))
    first = asks()
    hasty = Exchange(CHAT, asking(stream=True), headers=keyed(x_request_timeout_ms="5000"))
    running = [begin(house, first), begin(house, hasty)]
    await until(lambda: len(hasty.blocks) == 1)
    await pass_time(clock, house, 6)
    await running[1]
    assert hasty.events_numbered()[-1][1]["error"]["code"] == "deadline_exceeded"
    assert house.recorder.last.outcome is Outcome.DEADLINE
    house.engine.go_on.set()
    assert (await running[0]).events_numbered()[-1][1] == "[DONE]"


async def test_a_run_ends_with_the_deadline_of_the_call_that_began_it(build: Build) -> None:
    clock = FakeClock()
    house = await build(clock=clock, only=Scripted(stall_at=0))
    hasty = Exchange(CHAT, asking(), headers=keyed(x_request_timeout_ms="5000"))
    running = begin(house, hasty)
    await until(lambda: house.engine.running == 1)
    await pass_time(clock, house, 5)
    assert (await running).status == 504
    await pass_time(clock, house, 1.1)
    await idle(house)
    assert house.engine.aborted == 1


async def test_what_still_runs_at_the_end_is_ended_with_the_reason(build: Build) -> None:
    house = await build(only=Scripted(stall_at=1))
    first = asks()
    async with house.gateway.replays.running(drain_s=0):
        running = begin(house, first)
        await until(lambda: len(first.blocks) == 1)
    assert (await running).events_numbered()[-1][1]["error"]["code"] == "draining"
    assert house.engine.aborted == 1


async def test_an_end_waits_for_a_run_that_nobody_reads(build: Build) -> None:
    house = await build(only=Scripted(stall_at=1))
    first = asks()
    async with house.gateway.replays.running(drain_s=60):
        running = begin(house, first)
        await until(lambda: len(first.blocks) == 1)
        first.hang_up()
        await running
        house.engine.go_on.set()
    again = await asks().run((await build()).gateway.app)
    assert again.body.startswith(first.body)
    assert (again.headers["idempotent-replayed"], executions(house)) == ("true", 1)


async def test_while_draining_running_and_finished_answers_are_given_and_no_others(build: Build) -> None:
    house = await build(only=Scripted())
    whole = await asks().run(house.gateway.app)
    house.engine.stall_at = 1
    running = begin(house, asks(key="other"))
    await until(lambda: house.engine.running == 1)
    house.gateway.admission.draining = True
    twin = begin(house, asks(key="other"))
    refused = await asks(key="new").run(house.gateway.app)
    assert (refused.status, refused.headers["x-gllm-reason"]) == (503, "draining")
    assert (await asks().run(house.gateway.app)).body == whole.body
    house.engine.go_on.set()
    assert (await twin).body == (await running).body


# --- too large to be kept -----------------------------------------------------------------------------------------

LONG = tuple(f"word {n} " for n in range(100))


async def test_past_the_cap_readers_go_on_live_and_late_ones_are_refused(build: Build) -> None:
    house = await build(settings={"IDEMPOTENCY_MAX_EVENTS": 20}, only=Scripted(LONG, stall_at=60))
    first = asks()
    running = begin(house, first)
    await until(lambda: first.body.count(b"\n\n") == 60)
    late = await asks().run(house.gateway.app)
    assert (late.status, late.error["code"]) == (409, "idempotency_not_replayable")
    near = asks(seen=50)
    attached = begin(house, near)
    house.engine.go_on.set()
    await asyncio.gather(running, attached)
    assert first.body.endswith(near.body)
    assert len(first.events_numbered()) == 103
    after = await asks().run(house.gateway.app)
    assert (after.status, after.headers["x-should-retry"]) == (409, "false")
    assert executions(house) == 1


async def test_past_the_cap_the_slowest_reader_holds_up_the_run_until_it_is_cut(build: Build) -> None:
    clock = FakeClock()
    house = await build(
        clock=clock, settings={"IDEMPOTENCY_MAX_EVENTS": 20, "WRITE_TIMEOUT": 5}, only=Scripted(LONG, stall_at=0)
    )
    first, stalled = asks(), asks(stop_reading_after=300)
    running = [begin(house, first), begin(house, stalled)]
    await until(lambda: house.engine.running == 1)
    house.engine.go_on.set()
    await until(lambda: len(stalled.blocks) > 1)
    for _ in range(1_000):
        await asyncio.sleep(0)
    assert not running[0].done()
    assert house.engine.running == 1
    await pass_time(clock, house, 6)
    await running[0]
    assert len(first.events_numbered()) == 103
    await running[1]


async def test_a_whole_answer_past_the_cap_says_that_it_is_not_kept(build: Build) -> None:
    house = await build(settings={"IDEMPOTENCY_MAX_BYTES": 1_024}, only=Scripted(LONG))
    twins = await asyncio.gather(*(asks(stream=False).run(house.gateway.app) for _ in range(2)))
    assert {(twin.status, twin.headers["x-gllm-replayable"]) for twin in twins} == {(200, "false")}
    assert len({twin.body for twin in twins}) == 1
    after = await asks(stream=False).run(house.gateway.app)
    assert (after.status, after.error["code"]) == (409, "idempotency_not_replayable")
    assert executions(house) == 1


# --- a restart, a store that is down ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_finished_answer_survives_a_restart(build: Build, stream: bool) -> None:
    once = await asks(stream).run((await build()).gateway.app)
    second = await build()
    again = await asks(stream).run(second.gateway.app)
    assert (again.body, executions(second)) == (once.body, 0)


async def test_with_a_broken_disk_keyed_requests_are_503_until_it_is_mended(build: Build, tmp_path: Path) -> None:
    house = await build(settings={"STATE_DIR": tmp_path / "state"})
    (tmp_path / "state").write_text("not a folder")
    refused = await asks().run(house.gateway.app)
    assert (refused.status, refused.headers["x-gllm-reason"]) == (503, "idempotency_unavailable")
    assert refused.headers["retry-after"] == "1"
    assert (await house.post(asking())).status == 200
    (tmp_path / "state").unlink()
    assert (await asks().run(house.gateway.app)).status == 200
