"""A stream whose replica dies goes on at another one, and its client reads one answer (docs/adr/0020)."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.engines.scripted import End, Script, Scripted
from app.errors import (
    EngineBroken,
    EngineBusy,
    EngineError,
    EngineNonsense,
    EngineRefused,
    EngineStalled,
    EngineUnreachable,
    Outcome,
)
from app.generation import Call, Usage
from app.reliability.ledger import total
from app.telemetry.base import EngineErrorSeen, StreamTakenOver
from app.telemetry.record import Reason
from app.wire.sse import EventCutter
from tests.gateway.conftest import CHAT, Build, House
from tests.support.asgi import JSON, Exchange
from tests.support.clock import FakeClock
from tests.support.continuing import PROMPT_TOKENS, Twin, continuing, text_so_far
from tests.support.until import until

COMPLETIONS = "/v1/completions"
WORDS = ("Don", "'t", " panic", ":", "\n\n", "  it", " is", " “", "écrit", "” 🧭", ".")
TEXT = "".join(WORDS)
BESIDE = {CHAT: 4, COMPLETIONS: 3}
"""Events of a stream that are no words: who speaks, the stop, the usage, the end."""

USAGE = {"stream_options": {"include_usage": True}}


def asking(path: str, **fields: Any) -> dict[str, Any]:
    said = {"prompt": "Why?"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "Why?"}]}
    return {"model": "demo", "stream": True, "max_tokens": len(WORDS), **said, **fields}


def dying(**how: Any) -> Scripted:
    return Scripted(script=continuing(WORDS, **how))


def living(**how: Any) -> Twin:
    return Twin(script=continuing(WORDS, **how))


async def pair(build: Build, settings: dict[str, Any] | None = None, **engines: Scripted) -> House:
    """They are asked in turn: the first of them, and of others that are left the second."""
    return await build(settings={"ROUTING_POLICY": "round_robin", **(settings or {})}, **engines)


def text_of(done: Exchange) -> str:
    chunks = [event for event in done.events() if event != "[DONE]" and event.get("choices")]
    choices = [chunk["choices"][0] for chunk in chunks]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


def assert_is_one_answer(done: Exchange, path: str = CHAT, *, usage: bool = False) -> None:
    """As if it had come from one engine without a fault."""
    *chunks, last = done.events()
    assert last == "[DONE]"
    assert done.ended
    assert text_of(done) == TEXT
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert len({chunk["object"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] in (["stop"], ["length"])
    assert choices[-1]["finish_reason"]
    if path == CHAT:
        assert ["role" in choice["delta"] for choice in choices] == [True, *[False] * (len(choices) - 1)]
    told = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [each["completion_tokens"] for each in told] == ([len(WORDS)] if usage else [])
    assert [each["prompt_tokens"] for each in told] == ([PROMPT_TOKENS] if usage else [])
    assert [each["total_tokens"] for each in told] == ([PROMPT_TOKENS + len(WORDS)] if usage else [])


# --- seamless ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks_usage", [False, True], ids=["no usage", "usage"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_wherever_a_replica_dies_its_client_reads_what_one_would_have_said(
    build: Build, path: str, asks_usage: bool
) -> None:
    errors = itertools.cycle((EngineBroken, EngineStalled, EngineNonsense))
    for cut, error in zip(range(1, len(WORDS) + BESIDE[path] + 1), errors, strict=False):
        house = await pair(build, a=dying(break_at=cut, break_with=error), b=living())
        done = await house.post(asking(path, **(USAGE if asks_usage else {})), path)
        assert_is_one_answer(done, path, usage=asks_usage)
        assert done.headers["x-gllm-replica"] == "a"
        record = house.recorder.last
        assert (record.outcome, record.usage, record.guessed) == (
            Outcome.OK,
            Usage(PROMPT_TOKENS, len(WORDS)),
            False,
        )
        assert total(house.gateway.storage.books.ledger.take()).completion_tokens == len(WORDS)
        tokens = max(0, min(len(WORDS), cut - (path == CHAT)))
        taken_over = int(tokens < len(WORDS))
        assert (record.taken_over, record.attempts, len(record.tries)) == (taken_over, 1 + taken_over, 1 + taken_over)
        for call in house.engines["b"].calls:
            assert text_so_far(call) == "".join(WORDS[:tokens])
            assert json.loads(call.body)["max_tokens"] == len(WORDS) - tokens
        events = [event for event in house.recorder.events if isinstance(event, EngineErrorSeen | StreamTakenOver)]
        if cut < len(WORDS) + BESIDE[path]:
            assert events.pop(0) == EngineErrorSeen(record.id, "a", error.__name__, "", bool(taken_over))
        assert events == [StreamTakenOver(record.id, "a", "b")] * taken_over


class Torn(Scripted):
    """Dies within its stream at a byte, which the gateway's end of the connection makes blocks of."""

    def __init__(self, at: int, **how: Any) -> None:
        super().__init__(**how)
        self.left = at
        self.sent = b""

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        async with super().open(call) as blocks:
            yield self._torn(blocks)

    async def _torn(self, blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        cutter = EventCutter(1_000_000)
        async for block in blocks:
            self.sent += block
            part, self.left = block[: self.left], self.left - len(block[: self.left])
            if whole := cutter.feed(part):
                yield whole
            if not self.left:
                raise EngineBroken


async def test_a_death_within_an_event_or_within_a_character_is_no_worse(build: Build) -> None:
    whole = Torn(1_000_000, script=continuing(WORDS))
    await (await pair(build, a=whole)).post(asking(CHAT))
    places = {"🧭".encode(): 2, "é".encode(): 1, b"data:": 3}
    inside = [whole.sent.index(what, 500) + into for what, into in places.items()]
    for at in (*range(1, len(whole.sent), 97), *inside):
        house = await pair(build, a=Torn(at, script=continuing(WORDS)), b=living())
        assert_is_one_answer(await house.post(asking(CHAT, **USAGE)), usage=True)


@pytest.mark.parametrize("events", [2, 5])
async def test_it_does_not_matter_how_many_events_come_at_once(build: Build, events: int) -> None:
    for cut in range(1, 8):
        house = await pair(build, a=dying(break_at=cut, events_per_block=events), b=living())
        assert_is_one_answer(await house.post(asking(CHAT)))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_second_death_is_taken_over_too(build: Build, path: str) -> None:
    def breaks(call: Call) -> Script:
        script = continuing(WORDS)(call)
        script.break_at = 3
        return script

    house = await pair(build, a=dying(break_at=4), c=living(), b=Twin(script=breaks))
    assert_is_one_answer(await house.post(asking(path, **USAGE), path), path, usage=True)
    record = house.recorder.last
    assert (record.taken_over, record.attempts, record.replica) == (2, 3, "c")
    assert record.usage == Usage(PROMPT_TOKENS, len(WORDS))
    taken_over = [event for event in house.recorder.events if isinstance(event, StreamTakenOver)]
    assert [(event.from_replica, event.to_replica) for event in taken_over] == [("a", "b"), ("b", "c")]


async def test_where_no_limit_is_set_none_is_made_up(build: Build) -> None:
    house = await pair(build, a=dying(break_at=4), b=living())
    body = asking(CHAT)
    del body["max_tokens"]
    assert_is_one_answer(await house.post(body))
    assert "max_tokens" not in json.loads(house.engines["b"].calls[0].body)


async def test_a_completion_that_names_no_limit_has_the_usual_one(build: Build) -> None:
    house = await pair(build, a=dying(break_at=4), b=living())
    body = asking(COMPLETIONS)
    del body["max_tokens"]
    assert_is_one_answer(await house.post(body, COMPLETIONS), COMPLETIONS)
    assert json.loads(house.engines["b"].calls[0].body)["max_tokens"] == 16 - 4


async def test_all_streams_of_a_dead_replica_go_on_whatever_the_retry_budget(build: Build) -> None:
    house = await pair(build, {"RETRY_BUDGET": 0.0}, a=dying(stall_at=4, break_at=4), b=living())
    streams = [asyncio.create_task(house.post(asking(CHAT))) for _ in range(60)]
    await until(lambda: house.engines["a"].running == 30 and len(house.recorder.records) == 30)
    house.engines["a"].go_on.set()
    for done in await asyncio.gather(*streams):
        assert_is_one_answer(done)
    assert sum(record.taken_over for record in house.recorder.records) == 30


async def test_a_keyed_stream_is_kept_as_its_client_read_it(build: Build) -> None:
    house = await pair(build, a=dying(break_at=4), b=living())
    headers = [*JSON, (b"idempotency-key", b"once")]
    first = await house.post(asking(CHAT, **USAGE), headers=headers)
    events = [event for _, event in first.events_numbered()]
    assert [number for number, _ in first.events_numbered()] == list(range(1, len(events) + 1))
    again = await house.post(asking(CHAT, **USAGE), headers=headers)
    assert again.body == first.body
    assert events[-1] == "[DONE]"
    said = [event["choices"][0]["delta"].get("content", "") for event in events[:-1] if event["choices"]]
    assert "".join(said) == TEXT
    assert house.recorder.records[0].taken_over == 1
    assert [record.usage for record in house.recorder.records] == [Usage(PROMPT_TOKENS, len(WORDS)), None]


async def test_a_hedged_stream_is_taken_over_too(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.reliability.hedge.HedgeDelay.after", lambda *_: 0.0)
    monkeypatch.setattr("app.reliability.hedge.HedgeDelay.take", lambda *_: True)
    engines = {"slow": Scripted(stall_at=0), "b": living(), "a": dying(break_at=4)}
    house = await pair(build, {"HEDGE_SHARE": 0.2}, **engines)
    house.gateway.fleet._choose = lambda free, call: (free[-1] if len(free) == 2 else free[0], Reason.TURN)
    assert_is_one_answer(await house.post(asking(CHAT)))
    taken_over = [event for event in house.recorder.events if isinstance(event, StreamTakenOver)]
    assert taken_over == [StreamTakenOver(house.recorder.last.id, "a", "b")]


async def test_spaces_that_a_template_cut_off_are_not_said_twice(build: Build) -> None:
    """Engines that answer a chat begin anew with the spaces at its end, if its template has cut them off."""

    def trims(call: Call) -> Script:
        return Script(words=("\n", "\n", "  it", *WORDS[6:]))

    cut = 1 + WORDS.index("\n\n") + 1
    house = await pair(build, a=dying(break_at=cut), b=Twin(script=trims))
    done = await house.post(asking(CHAT))
    assert text_of(done) == TEXT


async def test_a_chat_that_has_said_spaces_only_is_asked_anew(build: Build) -> None:
    words = ("\n", "\n", "Hello", "\n", ".")
    house = await pair(build, a=Scripted(words=words, break_at=3), b=Twin(words=words))
    assert text_of(await house.post(asking(CHAT))) == "".join(words)
    first, second = (engine.calls[0].body for engine in house.engines.values())
    assert first == second


# --- where nobody goes on ---------------------------------------------------------------------------------------------


async def assert_interrupted(
    house: House, path: str = CHAT, *, code: str = "engine_interrupted", **fields: Any
) -> Exchange:
    done = await house.post(asking(path, **fields), path)
    assert "[DONE]" not in done.events()
    assert done.events()[-1]["error"]["code"] == code
    assert [event for event in done.events() if "error" in event] == [done.events()[-1]]
    assert done.ended
    assert house.recorder.last.outcome is Outcome.INTERRUPTED
    return done


async def test_without_another_replica_it_is_an_error_event(build: Build) -> None:
    await assert_interrupted(await pair(build, a=dying(break_at=3)))


async def test_without_another_replica_that_is_ready_it_is_an_error_event(build: Build) -> None:
    house = await pair(build, a=dying(break_at=3), b=living(), c=dying())
    for name in ("b", "c"):
        replica = house.gateway.fleet.find(name)
        assert replica is not None
        house.gateway.fleet.drain(replica)
    await assert_interrupted(house)
    assert not house.engines["b"].calls


@pytest.mark.parametrize("settings", [{"MAX_ATTEMPTS": 1}, {"TAKEOVER": False}, {"EXACT_USAGE": False}], ids=str)
async def test_what_is_not_allowed_is_not_done(build: Build, settings: dict[str, Any]) -> None:
    house = await pair(build, settings, a=dying(break_at=3), b=living())
    await assert_interrupted(house)
    assert not house.engines["b"].calls
    assert house.recorder.last.taken_over == 0


FORCED = {"type": "function", "function": {"name": "f"}}
HINDERING: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"n": 2}),
    (CHAT, {"tools": [FORCED]}),
    (CHAT, {"logprobs": True}),
    (CHAT, {"response_format": {"type": "json_object"}}),
    (CHAT, {"structured_outputs": {"regex": "a"}}),
    (CHAT, {"presence_penalty": 1}),
    (CHAT, {"frequency_penalty": -0.5}),
    (CHAT, {"min_tokens": 5}),
    (CHAT, {"ignore_eos": True}),
    (CHAT, {"seed": 1}),
    (CHAT, {"reasoning_effort": "low"}),
    (CHAT, {"continue_final_message": True, "add_generation_prompt": False}),
    (CHAT, {"stop": "x", "include_stop_str_in_output": True}),
    (CHAT, {"return_token_ids": True}),
    (COMPLETIONS, {"echo": True}),
    (COMPLETIONS, {"logprobs": 0}),
    (COMPLETIONS, {"suffix": "x"}),
    (COMPLETIONS, {"prompt": ["Why?", "How?"]}),
    (COMPLETIONS, {"prompt": [1, 2, 3]}),
]


@pytest.mark.parametrize(("path", "fields"), HINDERING, ids=str)
async def test_what_cannot_be_told_again_as_text_is_not_taken_over(
    build: Build, path: str, fields: dict[str, Any]
) -> None:
    house = await pair(build, a=Scripted(break_at=3), b=Twin())
    await assert_interrupted(house, path, **fields)
    assert not house.engines["b"].calls


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"tells_usage": False}, WORDS),
        ({"lies": {"prompt_tokens": 1, "completion_tokens": 0}}, WORDS),
        ({"lies": {"prompt_tokens": 1, "completion_tokens": 2**40}}, WORDS),
        ({}, ("<think>", "Hm", "</think>", "Yes", ".")),
    ],
    ids=["no counts", "counts too small", "counts too large", "thoughts"],
)
async def test_what_is_not_known_well_enough_is_not_taken_over(
    build: Build, how: dict[str, Any], words: tuple[str, ...]
) -> None:
    house = await pair(build, a=Scripted(words=words, break_at=4, **how), b=Twin(words=words))
    await assert_interrupted(house)
    assert not house.engines["b"].calls


class Other(Scripted):
    """Says something that is no text, from its third event on."""

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        async def changed(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            count = 0
            async for block in blocks:
                count += 1
                yield block.replace(b'"content":', b'"reasoning":') if count > 2 else block

        async with super().open(call) as blocks:
            yield changed(blocks)


async def test_a_stream_with_other_than_text_in_it_is_not_taken_over(build: Build) -> None:
    house = await pair(build, a=Other(break_at=4), b=living())
    await assert_interrupted(house)
    assert not house.engines["b"].calls


async def test_a_replica_that_would_go_on_with_other_than_text_does_not(build: Build) -> None:
    house = await pair(build, {"CIRCUIT_FAILURES": 1}, a=dying(break_at=4), b=Other(script=continuing(WORDS)))
    done = await assert_interrupted(house)
    assert b"reasoning" not in done.body
    assert text_of(done) == "".join(WORDS[:4]), "what came before it went wrong is kept"
    replica = house.gateway.fleet.find("b")
    assert replica is not None
    assert replica.circuit.state.value == "closed", "it is well"


@pytest.mark.parametrize("refusal", [EngineRefused(), EngineBusy(), EngineUnreachable()], ids=repr)
async def test_where_the_other_one_refuses_its_client_hears_what_interrupted_it(
    build: Build, refusal: EngineError
) -> None:
    house = await pair(build, a=dying(break_at=3, break_with=EngineStalled), b=Scripted(refuse_with=refusal))
    await assert_interrupted(house, code="engine_idle_timeout")
    record = house.recorder.last
    assert [attempt.error for attempt in record.tries] == ["EngineStalled", type(refusal).__name__]
    assert (record.usage, record.taken_over) == (Usage(PROMPT_TOKENS, 2), 0)


@pytest.mark.parametrize("refusal", [EngineBusy(), EngineUnreachable()], ids=repr)
async def test_where_the_other_one_refuses_a_third_goes_on(build: Build, refusal: EngineError) -> None:
    house = await pair(build, a=dying(break_at=4), c=living(), b=Scripted(refuse_with=refusal))
    assert_is_one_answer(await house.post(asking(CHAT)))
    assert house.recorder.last.attempts == 3


async def test_when_the_other_one_dies_as_well_and_nobody_is_left_it_is_an_error_event(build: Build) -> None:
    house = await pair(build, a=dying(break_at=4), b=Scripted(words=WORDS[3:], break_at=3, prompt_tokens=99))
    done = await assert_interrupted(house)
    assert text_of(done) == "".join(WORDS[:5])
    assert house.recorder.last.usage == Usage(PROMPT_TOKENS, 5), "what is delivered is paid, and the prompt once"


async def test_who_goes_on_without_telling_its_usage_is_guessed(build: Build) -> None:
    def silent(call: Call) -> Script:
        script = continuing(WORDS)(call)
        script.tells_usage = False
        return script

    house = await pair(build, a=dying(break_at=4), b=Twin(script=silent))
    assert text_of(await house.post(asking(CHAT))) == TEXT
    record = house.recorder.last
    assert record.guessed
    assert record.usage is not None
    assert record.usage.prompt_tokens == PROMPT_TOKENS
    assert len(WORDS) <= record.usage.completion_tokens <= len(WORDS) + 2


# --- in between -------------------------------------------------------------------------------------------------------


async def interrupted(build: Build, **settings: Any) -> tuple[House, Exchange, "asyncio.Task[Exchange]", FakeClock]:
    """A stream that has been interrupted, and whose second replica has not begun."""
    clock = FakeClock()
    house = await build(
        settings={"ROUTING_POLICY": "round_robin", **settings},
        clock=clock,
        a=dying(break_at=4),
        b=Twin(script=lambda call: Script(words=WORDS[3:], stall_at=0)),
    )
    exchange = Exchange(CHAT, asking(CHAT))
    running = asyncio.create_task(exchange.run(house.gateway.app))
    await until(lambda: house.engines["b"].running == 1)
    return house, exchange, running, clock


async def test_who_hangs_up_in_between_leaves_nothing_behind(build: Build) -> None:
    house, exchange, running, _ = await interrupted(build)
    exchange.hang_up()
    await running
    assert house.recorder.last.outcome is Outcome.CLIENT_GONE
    assert house.recorder.last.usage == Usage(PROMPT_TOKENS, 3)
    assert house.engines["b"].works[0].end is End.ABORTED


async def test_a_deadline_that_passes_in_between_is_said(build: Build) -> None:
    house, exchange, running, clock = await interrupted(build, REQUEST_TIMEOUT=5)
    clock.advance(6)
    house.gateway.watch.sweep()
    await running
    assert exchange.events()[-1]["error"]["code"] == "deadline_exceeded"
    assert (house.recorder.last.outcome, house.recorder.last.usage) == (Outcome.DEADLINE, Usage(PROMPT_TOKENS, 3))


async def _all_slots_taken(build: Build, **how: Any) -> tuple[House, Exchange, list["asyncio.Task[Exchange]"]]:
    """The other replica is full: the stream waits for its turn."""
    house = await build(
        settings={"ROUTING_POLICY": "round_robin", "MAX_CONCURRENT_REQUESTS": 1, "REQUEST_TIMEOUT": 50},
        a=Scripted(script=continuing(WORDS, stall_at=4, break_at=4)),
        b=Scripted(script=lambda call: Script(stall_at=0) if not text_so_far(call) else continuing(WORDS)(call)),
        **how,
    )
    exchange = Exchange(CHAT, asking(CHAT))
    streaming = asyncio.create_task(exchange.run(house.gateway.app))
    await until(lambda: len(exchange.blocks) == 4)
    other = asyncio.create_task(house.post(asking(CHAT)))
    await until(lambda: house.engines["b"].running == 1)
    house.engines["a"].go_on.set()
    await until(lambda: house.gateway.admission.waiting == 1)
    return house, exchange, [streaming, other]


async def test_where_the_other_one_has_no_room_it_waits_for_its_turn(build: Build) -> None:
    house, exchange, running = await _all_slots_taken(build)
    house.engines["b"].go_on.set()
    await asyncio.gather(*running)
    assert_is_one_answer(exchange)
    record = next(each for each in house.recorder.records if each.taken_over)
    assert record.queued_s > 0


async def test_a_deadline_that_passes_while_it_waits_is_said_as_one(build: Build) -> None:
    clock = FakeClock()
    house, exchange, running = await _all_slots_taken(build, clock=clock)
    clock.advance(51)
    house.gateway.watch.sweep()
    await asyncio.gather(*running)
    assert exchange.events()[-1]["error"]["code"] == "deadline_exceeded"
    assert next(each for each in house.recorder.records if each.first_byte).outcome is Outcome.DEADLINE


async def test_what_is_blamed_is_the_replica_that_died(build: Build) -> None:
    house = await pair(build, {"CIRCUIT_FAILURES": 1}, a=dying(break_at=4), b=living())
    await house.post(asking(CHAT))
    states = {replica.name: replica.circuit.state.value for replica in house.gateway.fleet.replicas}
    assert states == {"a": "open", "b": "closed"}
