"""What the gateway's parts say when the metrics page is made, and what they have told until then."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.engines.scripted import Scripted
from app.errors import EngineBroken, EngineFailed, EngineSilent, StoreDown
from app.gateway.passage import SAMPLED
from app.reliability.limit import Load
from app.telemetry.metrics.families import GROUPS, STORE_UP
from app.tenant import Limits, Tenant
from tests.gateway.conftest import CHAT, Build, House, asking
from tests.support.asgi import JSON, Exchange
from tests.support.clock import FakeClock
from tests.support.until import until
from tests.telemetry.test_prometheus import ours

ONE_AT_A_TIME = {"MAX_CONCURRENT_REQUESTS": 1}


def numbers(house: House, name: str) -> dict[str, float]:
    """Of one series, by the values of its labels."""
    assert house.gateway.observers.metrics is not None
    found = ours(house.gateway.observers.metrics)
    return {" ".join(value for _, value in labels): number for (each, labels), number in found.items() if each == name}


def number(house: House, name: str) -> float:
    (only,) = numbers(house, name).values()
    return only


def stalling(**how: Any) -> Scripted:
    return Scripted(stall_at=0, **how)


@asynccontextmanager
async def at_work(house: House, count: int, **body: Any) -> AsyncIterator[list[asyncio.Task[Exchange]]]:
    """So many calls are inside for as long as the block lasts."""
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(house.post(asking(**body))) for _ in range(count)]
        await until(lambda: house.gateway.admission.inside == count)
        yield calls
        for engine in house.engines.values():
            engine.go_on.set()


# --- the line -----------------------------------------------------------------------------------------------------


async def test_the_line_of_a_model_is_told_by_its_length_its_prompts_and_its_oldest(build: Build) -> None:
    clock = FakeClock()
    house = await build(settings={**ONE_AT_A_TIME, "QUEUE_CAPACITY": 9}, clock=clock, only=stalling())
    assert numbers(house, "gllm_queue_requests") == {"demo": 0}
    assert number(house, "gllm_queue_places") == 9
    async with at_work(house, 3):
        clock.advance(4)
        assert numbers(house, "gllm_queue_requests") == {"demo": 2}
        assert numbers(house, "gllm_queue_prompt_tokens")["demo"] == 2 * _prompt_tokens(house)
        assert numbers(house, "gllm_queue_oldest_seconds") == {"demo": 4}
        assert (number(house, "gllm_slots"), number(house, "gllm_slots_taken")) == (1, 1)
    assert numbers(house, "gllm_queue_requests") == {"demo": 0}
    assert numbers(house, "gllm_queue_oldest_seconds") == {"demo": 0}


def _prompt_tokens(house: House) -> int:
    (line,) = house.gateway.admission.lines.values()
    return line.prompt_tokens // len(line)


async def test_who_comes_back_to_the_line_from_a_failed_replica_waits_in_it_too(build: Build) -> None:
    clock = FakeClock()
    failing = Scripted(refuse_with=EngineFailed(), refusals=2)
    house = await build(settings=ONE_AT_A_TIME, clock=clock, a=failing, b=stalling())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(house.post(asking()))
        await until(lambda: house.engines["b"].running == 1)
        tasks.create_task(house.post(asking()))
        await until(lambda: house.gateway.admission.waiting == 1)
        (line,) = house.gateway.admission.lines.values()
        assert (len(line.returning), len(line.queue)) == (1, 0)
        clock.advance(2)
        assert numbers(house, "gllm_queue_requests") == {"demo": 1}
        assert numbers(house, "gllm_queue_prompt_tokens") == {"demo": line.returning[0].prompt_tokens}
        assert numbers(house, "gllm_queue_oldest_seconds") == {"demo": 2}
        house.engines["b"].go_on.set()


async def test_a_line_without_bounds_has_infinite_places(build: Build) -> None:
    house = await build(settings={"ENABLE_BACKPRESSURE": False})
    assert number(house, "gllm_queue_places") == float("inf")


async def test_models_beyond_the_bound_wait_in_one_line_together(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.gateway.readings.MOST_MODELS", 2)
    names = {f"m{number}": None for number in range(4)}
    house = await build(settings={"MAX_CONCURRENT_REQUESTS": 2}, only=stalling(serves=names))
    async with asyncio.TaskGroup() as tasks:
        for model in ("m0", "m1", "m2", "m3", "m3"):
            tasks.create_task(house.post(asking(model=model)))
        await until(lambda: house.gateway.admission.inside == 5)
        assert numbers(house, "gllm_queue_requests") == {"m0": 0, "m1": 0, "other": 3}
        house.engine.go_on.set()


# --- replicas -----------------------------------------------------------------------------------------------------


async def test_a_replica_is_ready_or_not_and_one_that_is_gone_leaves_the_page(build: Build) -> None:
    house = await build(a=Scripted(), b=Scripted())
    fleet = house.gateway.fleet
    a = fleet.find("a")
    assert a is not None
    assert numbers(house, "gllm_replica_ready") == {"a": 1, "b": 1}
    fleet.drain(a)
    assert numbers(house, "gllm_replica_ready") == {"a": 0, "b": 1}
    fleet.admit(a)
    fleet.failed(a, "EngineUnreachable")
    assert numbers(house, "gllm_replica_ready") == {"a": 0, "b": 1}
    fleet.remove("a")
    assert house.gateway.observers.metrics is not None
    assert not [labels for _, labels in ours(house.gateway.observers.metrics) if ("replica", "a") in labels]
    fleet.add(a)


async def test_what_an_engine_says_of_itself_is_shown_while_it_is_fresh(build: Build) -> None:
    house = await build()
    (replica,) = house.gateway.fleet.replicas
    names = [f"gllm_replica_engine_{what}" for what in ("running", "waiting")] + ["gllm_replica_kv_cache_ratio"]
    assert [numbers(house, name) for name in names] == [{"only": 0}, {"only": 0}, {}], (
        "a scripted engine has no KV cache"
    )
    house.gateway.fleet.told(replica, Load(waiting=3, running=8, kv_share=0.5))
    assert [numbers(house, name) for name in names] == [{"only": 8}, {"only": 3}, {"only": 0.5}]
    replica.untold()
    assert [numbers(house, name) for name in names] == [{}, {}, {}]
    house.gateway.fleet.told(replica, Load(waiting=3, running=8, kv_share=0.5))
    house.gateway.fleet.failed(replica, "gone")
    assert [numbers(house, name) for name in names] == [{}, {}, {}]


@pytest.mark.parametrize("metrics", [True, False])
async def test_engines_are_asked_for_their_load_for_the_page_alone(build: Build, metrics: bool) -> None:
    house = await build(settings={"ROUTING_POLICY": "round_robin", "ENABLE_METRICS": metrics})
    (replica,) = house.gateway.fleet.replicas
    assert (replica.said is not None) == metrics


async def test_what_a_replica_has_to_do_is_told(build: Build) -> None:
    house = await build(settings={"MAX_CONCURRENT_REQUESTS": 5}, a=stalling(), b=stalling())
    async with at_work(house, 3):
        assert sum(numbers(house, "gllm_replica_running").values()) == 3
        assert numbers(house, "gllm_replica_slots") == {"a": 5, "b": 5}
    assert numbers(house, "gllm_replica_running") == {"a": 0, "b": 0}


async def test_a_replica_that_fails_is_given_pauses_that_are_counted(build: Build) -> None:
    clock = FakeClock()
    settings = {"CIRCUIT_FAILURES": 2, "MAX_ATTEMPTS": 1}
    house = await build(settings=settings, clock=clock, only=Scripted(refuse_with=EngineFailed()))
    assert numbers(house, "gllm_circuit_openings_total") == {"only": 0}
    for _ in range(2):
        assert (await house.post(asking())).status == 502
    assert numbers(house, "gllm_circuit_open") == {"only": 1}
    assert numbers(house, "gllm_circuit_openings_total") == {"only": 1}
    assert (await house.post(asking())).error["code"] == "circuit_open"
    assert numbers(house, "gllm_refusals_total")["circuit_open"] == 1
    house.engine.refuse_with = None
    clock.advance(60)
    assert (await house.post(asking())).status == 200
    assert numbers(house, "gllm_circuit_open") == {"only": 0}


# --- tries --------------------------------------------------------------------------------------------------------


async def test_the_retry_budget_is_told_and_what_it_denies_is_counted(build: Build) -> None:
    failing = {name: Scripted(refuse_with=EngineFailed()) for name in "ab"}
    clock = FakeClock()
    house = await build(settings={"CIRCUIT_FAILURES": 100}, clock=clock, **failing)
    assert (number(house, "gllm_retry_budget"), number(house, "gllm_retries_denied_total")) == (9, 0)
    for _ in range(15):
        assert (await house.post(asking())).status == 502
    assert number(house, "gllm_retry_budget") == 0
    assert number(house, "gllm_retries_total") + number(house, "gllm_retries_denied_total") == 15
    assert number(house, "gllm_retries_denied_total") > 0
    clock.advance(20)
    assert number(house, "gllm_retry_budget") == 9


async def test_where_retries_are_off_no_budget_is_spent(build: Build) -> None:
    house = await build(settings={"RETRY_BUDGET": 0}, a=Scripted(refuse_with=EngineFailed()), b=Scripted())
    await house.post(asking())
    await house.post(asking())
    assert numbers(house, "gllm_retry_budget") == {}
    assert number(house, "gllm_retries_denied_total") == 0


# --- streams ------------------------------------------------------------------------------------------------------


async def test_a_stream_is_open_until_it_ends_and_told_by_how_it_did(build: Build) -> None:
    house = await build(only=Scripted(stall_at=2))
    async with asyncio.TaskGroup() as tasks:
        stream = Exchange(CHAT, asking(stream=True))
        tasks.create_task(stream.run(house.gateway.app))
        await until(lambda: len(stream.blocks) > 0)
        assert number(house, "gllm_streams_open") == 1
        house.engine.go_on.set()
    assert number(house, "gllm_streams_open") == 0
    house.engine.stall_at, house.engine.break_at, house.engine.break_with = None, 2, EngineBroken
    await house.post(asking(stream=True))
    house.engine.break_at = None
    await house.post(asking(stream=True), hang_up_after=1)
    await until(lambda: house.gateway.admission.inside == 0)
    told = {outcome: count for outcome, count in numbers(house, "gllm_streams_total").items() if count}
    assert told == {"ok": 1, "interrupted": 1, "client_gone": 1}
    assert numbers(house, "gllm_time_to_first_token_seconds_count") == {"demo": 3}


async def test_one_event_in_many_is_timed_of_short_streams_as_of_long_ones(build: Build) -> None:
    words = tuple(f"word{number}" for number in range(2 * SAMPLED))
    house = await build(only=Scripted(words=words))
    for _ in range(SAMPLED // 2):
        await house.post(asking(stream=True))
    of_long = number(house, "gllm_event_delay_seconds_count")
    assert of_long == pytest.approx(SAMPLED, abs=SAMPLED // 4)
    house.engine.words = ("one", "two", "three")
    for _ in range(4 * SAMPLED):
        await house.post(asking(stream=True))
    of_short = number(house, "gllm_event_delay_seconds_count") - of_long
    assert of_short == pytest.approx(4 * 5, abs=5)


# --- keys ---------------------------------------------------------------------------------------------------------


def keyed(seen: int | None = None, key: bytes = b"k") -> list[tuple[bytes, bytes]]:
    headers = [*JSON, (b"idempotency-key", key)]
    return headers if seen is None else [*headers, (b"last-event-id", b"%d" % seen)]


def results(house: House) -> dict[str, float]:
    return {result: count for result, count in numbers(house, "gllm_idempotency_total").items() if count}


async def test_what_became_of_keys_is_told(build: Build) -> None:
    house = await build(only=Scripted(stall_at=2))
    async with asyncio.TaskGroup() as tasks:
        first = Exchange(CHAT, asking(stream=True), headers=keyed())
        tasks.create_task(first.run(house.gateway.app))
        await until(lambda: len(first.blocks) > 0)
        assert number(house, "gllm_keyed_runs") == 1
        for seen in (None, 1):
            tasks.create_task(house.post(asking(stream=True), headers=keyed(seen)))
        other = await house.post(asking(stream=True, user="other"), headers=keyed())
        assert other.status == 422
        house.engine.go_on.set()
    await until(lambda: len(house.gateway.replays) == 0)
    await house.post(asking(stream=True), headers=keyed())
    await house.post(asking(stream=True), headers=keyed(1))
    assert (await house.post(asking(stream=True), headers=keyed(1, b"never"))).status == 409
    await house.post(asking(stream=True))
    assert results(house) == {
        "first": 1,
        "attached": 1,
        "resumed": 2,
        "mismatch": 1,
        "replayed": 1,
        "not_replayable": 1,
    }


async def test_a_key_in_flight_and_one_that_cannot_be_checked_are_told(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await build(settings={"IDEMPOTENCY_ATTACH": False}, only=stalling())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(house.post(asking(), headers=keyed()))
        await until(lambda: house.engine.running == 1)
        assert (await house.post(asking(), headers=keyed())).status == 409
        house.engine.go_on.set()
    await until(lambda: len(house.gateway.replays) == 0)

    async def down(key: object) -> None:
        raise StoreDown

    monkeypatch.setattr(house.gateway.storage.answers, "claim", down)
    assert (await house.post(asking(), headers=keyed(key=b"other"))).status == 503
    assert results(house) == {"first": 1, "in_flight": 1, "store_down": 1}


async def test_a_first_call_that_failed_or_hung_up_was_the_first_all_the_same(build: Build) -> None:
    house = await build(only=Scripted(refuse_with=EngineSilent(), refusals=3))
    await house.post(asking(), headers=keyed())
    await house.post(asking(stream=True), headers=keyed(key=b"other"), hang_up_after=1)
    await until(lambda: len(house.gateway.replays) == 0)
    assert results(house) == {"first": 2}


# --- what is used -------------------------------------------------------------------------------------------------


async def test_tokens_are_told_as_they_are_settled_also_when_the_client_of_a_keyed_call_is_gone(build: Build) -> None:
    house = await build(only=Scripted(stall_at=2))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(house.post(asking(stream=True), headers=keyed(), hang_up_after=1))
        await until(lambda: len(house.recorder.records) == 1)
        assert numbers(house, "gllm_generated_tokens_total") == {"demo": 0}
        house.engine.go_on.set()
    await until(lambda: len(house.gateway.replays) == 0)
    assert numbers(house, "gllm_generated_tokens_total") == {"demo": 4}
    assert numbers(house, "gllm_prompt_tokens_total") == {"demo": 7}
    assert numbers(house, "gllm_tenant_tokens_total") == {"completion anonymous": 4, "prompt anonymous": 7}


async def test_usage_that_is_not_written_and_reservations_that_are_held_are_told(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = await build(only=stalling())
    limited = Tenant("acme", limits=Limits(tokens_per_minute=100_000))
    monkeypatch.setattr(type(house.gateway.edge._door), "admit", lambda *args: limited)
    async with at_work(house, 2):
        assert number(house, "gllm_reservations") == 2
    assert number(house, "gllm_reservations") == 0
    assert number(house, "gllm_ledger_unwritten") == 1
    await house.gateway.storage.books.flush()
    assert number(house, "gllm_ledger_unwritten") == 0
    assert number(house, "gllm_ledger_failures_total") == 0
    assert 0 <= number(house, "gllm_ledger_age_seconds") < 60


async def test_lines_that_nobody_took_are_told(house: House) -> None:
    assert number(house, "gllm_log_lines_dropped_total") == 0
    house.gateway.observers.log.dropped += 3
    assert number(house, "gllm_log_lines_dropped_total") == 3


# --- the whole page -----------------------------------------------------------------------------------------------


async def test_own_time_adds_up_to_less_than_the_whole(build: Build) -> None:
    house = await build()
    for key in (None, b"k"):
        await house.post(asking(), headers=JSON if key is None else keyed(key=key))
    await house.post(asking(stream=True))
    for record in house.recorder.records:
        moments = [record.began, record.received, record.parsed, record.allowed, record.admitted, record.tries[0].began]
        assert moments == sorted(moments)
    counts = numbers(house, "gllm_overhead_seconds_count")
    assert counts == {"intake": 3, "limits": 3, "route": 3, "relay": 2, "total": 3}
    sums = numbers(house, "gllm_overhead_seconds_sum")
    total = sums.pop("total")
    assert all(phase > 0 for phase in sums.values())
    assert sum(sums.values()) == pytest.approx(total)
    assert total <= sum(numbers(house, "llm_request_duration_seconds_sum").values())


async def test_every_family_of_the_table_is_made_and_no_other(build: Build) -> None:
    house = await build(a=Scripted(), b=Scripted(refuse_with=EngineFailed(), refusals=1))
    for _ in range(2):
        await house.post(asking())
    (replica, _) = house.gateway.fleet.replicas
    house.gateway.fleet.told(replica, Load(waiting=0, running=0, kv_share=0.5))
    assert house.gateway.observers.metrics is not None
    made = {name for name, _ in ours(house.gateway.observers.metrics)}
    table = {series for group in GROUPS.values() for family in group for series in family.series}
    assert table - made == {STORE_UP.name}, "there is none here"
    assert made - table == set()
    labels = {name: {label for label, _ in each} - {"le"} for name, each in ours(house.gateway.observers.metrics)}
    for family in (family for group in GROUPS.values() for family in group if family is not STORE_UP):
        assert labels[family.series[0]] == set(family.labels), family.name
