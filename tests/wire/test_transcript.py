"""What is kept of a stream, where another replica can go on, and how its events become the same answer's."""

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EngineNonsense, EngineRefused
from app.generation import Call, Route, Usage
from app.wire.answers import stream_reader
from app.wire.seam import Seam
from app.wire.sse import DONE, data_of, split
from app.wire.transcript import _THOUGHTS, KEPT_BYTES, MOST_BYTES, Transcript

HEAD = {"id": "one", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
OTHER = {"id": "two", "object": "chat.completion.chunk", "created": 2, "model": "demo", "new": [1.5]}


def one(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def usage(completion: int, prompt: int = 7, cached: int = 4) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**counts, "prompt_tokens_details": {"cached_tokens": cached}}


def said(delta: dict[str, Any], made: int | None, finish: str | None = None, head: dict[str, Any] = HEAD) -> bytes:
    told = {} if made is None else {"usage": usage(made)}
    return one({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **told})


def words(*texts: str, made: int = 0) -> list[bytes]:
    return [said({"content": text}, made + number) for number, text in enumerate(texts, 1)]


ROLE = said({"role": "assistant", "content": ""}, 0)


def call(route: Route = Route.CHAT, max_tokens: int | None = 100) -> Call:
    body = {"messages": [{"role": "user", "content": "Why?"}]} if route is Route.CHAT else {"prompt": "Why?"}
    asked = body | ({} if max_tokens is None else {"max_tokens": max_tokens})
    data = json.dumps(asked).encode()
    return Call("r", route, "demo", data, 0, stream=True, counts_along=True, max_tokens=max_tokens, continuable=True)


def kept(*blocks: bytes, **how: Any) -> Transcript:
    asked = call(**how)
    transcript, reader = Transcript(asked), stream_reader(asked)
    for block in blocks:
        transcript.add(block, reader.read(block))
    return transcript


def seam_of(*blocks: bytes, **how: Any) -> Seam:
    seam = kept(*blocks, **how).remainder()
    assert isinstance(seam, Seam)
    return seam


def asked(seam: Seam) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(seam.call.body)
    return body


def continued(seam: Seam) -> str:
    text: str = asked(seam)["messages"][-1]["content"]
    return text


def events(block: bytes) -> list[Any]:
    return [json.loads(data_of(each)) for each in split(block)]


# --- what is kept -----------------------------------------------------------------------------------------------------


def in_blocks(stream: list[bytes], per_block: int) -> list[bytes]:
    return [b"".join(stream[start : start + per_block]) for start in range(0, len(stream), per_block)]


ODDITIES = [b": ping\n\n", said({"content": ""}, None), said({"content": None}, None), said({}, None)]


@given(
    st.lists(st.text(min_size=1), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1_500, 4_000),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(ODDITIES)), max_size=5),
)
def test_the_text_is_what_was_said_however_it_came_and_is_kept(
    texts: list[str], per_block: int, room: int, odd: list[tuple[int, bytes]]
) -> None:
    if not "".join(texts).strip() or any(each in "".join(texts) for each in _THOUGHTS):
        return
    shapes: tuple[dict[str, Any], ...] = ({}, {"refusal": None})
    stream = [said({"content": text} | shapes[number % 7 == 0], number) for number, text in enumerate(texts, 1)]
    stream.insert(0, ROLE)
    for place, event in odd:
        stream.insert(1 + place % len(texts), event)
    with mock.patch("app.wire.transcript.KEPT_BYTES", room):
        seam = seam_of(*in_blocks(stream, per_block))
    assert continued(seam) == "".join(texts)
    assert asked(seam)["max_tokens"] == 100 - len(texts)


@pytest.mark.parametrize("per_block", [1, 3])
def test_of_a_long_stream_little_more_than_its_text_is_kept(per_block: int) -> None:
    texts = [f' "word" {number}\n' for number in range(3_000)]
    transcript = kept(*in_blocks([ROLE, *words(*texts)], per_block), max_tokens=None)
    assert sum(map(len, transcript._blocks)) <= KEPT_BYTES
    assert sum(map(len, transcript._older)) < 2 * len(json.dumps("".join(texts)))
    seam = transcript.remainder()
    assert isinstance(seam, Seam)
    assert continued(seam) == "".join(texts)
    assert seam.guess(0) == Usage(7, 3_000, 4)


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_of_a_long_stream_it_is_known_too_that_its_counts_cannot_be_true(share: float) -> None:
    blocks = [said({"content": " word"}, round(share * number)) for number in range(1, 2_000)]
    assert kept(ROLE, *blocks, max_tokens=None).remainder() is None


@pytest.mark.parametrize("text", ["", "a"])
def test_of_what_takes_too_much_room_nothing_is_kept(text: str) -> None:
    count = MOST_BYTES // 2**12 + 8
    long = [said({"content": text, "reasoning_content": f"{number}".zfill(2**12)}, 1) for number in range(count)]
    transcript = kept(ROLE, *long, max_tokens=None)
    assert not transcript._older
    assert sum(map(len, transcript._blocks)) <= 2 * KEPT_BYTES
    assert transcript.remainder() is None


def test_of_a_text_that_is_too_long_nothing_is_kept() -> None:
    transcript = kept(ROLE, *words(*["x" * 2**16] * 18), max_tokens=None)
    assert MOST_BYTES < 17 * 2**16
    assert not transcript._older
    assert transcript.remainder() is None


def test_tokens_of_which_nothing_was_seen_are_made_again() -> None:
    held_back = said({"content": ""}, 4)
    assert asked(seam_of(ROLE, *words("a", "b", "c"), held_back))["max_tokens"] == 97


def test_other_lines_are_not_text() -> None:
    seam = seam_of(b": ping\n\n", b"id: 1\n" + ROLE, b"event: x\ndata: 5\n\n", *words("a"))
    assert continued(seam) == "a"


@pytest.mark.parametrize(
    "odd",
    [
        said({"tool_calls": [{"index": 0}]}, 1),
        said({"reasoning_content": "Hm"}, 1),
        said({"content": "a", "refusal": "No."}, 1),
        said({"content": ["a"]}, 1),
        one({**HEAD, "choices": [{"index": 1, "delta": {"content": "a"}}], "usage": usage(1)}),
        one({**HEAD, "choices": [{"index": 0, "delta": None}], "usage": usage(1)}),
        one({**HEAD, "choices": None}),
        b'data: {"torn\n\n',
        *words("<think>"),
        *words("Well</think>"),
    ],
)
def test_where_there_is_more_than_plain_text_nobody_goes_on(odd: bytes) -> None:
    assert kept(ROLE, odd).remainder() is None
    assert kept(ROLE, *words("a"), odd, *words("b", made=2)).remainder() is None


def test_fields_that_are_empty_are_nothing() -> None:
    empty: dict[str, Any] = {"content": "a", "reasoning_content": None, "tool_calls": [], "refusal": ""}
    assert continued(seam_of(ROLE, said(empty, 1))) == "a"


@pytest.mark.parametrize("made", [None, 0, 101, 2**40])
def test_where_it_is_not_known_how_much_was_made_nobody_goes_on(made: int | None) -> None:
    assert kept(ROLE, said({"content": "a"}, made)).remainder() is None


def test_before_its_first_event_there_is_nothing_to_go_on_with() -> None:
    assert kept().remainder() is None


# --- what is asked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [(), ("\n", " \n")])
def test_a_chat_without_a_word_is_asked_again_as_it_was(before: tuple[str, ...]) -> None:
    seam = seam_of(ROLE, *words(*before))
    assert seam.call == call()
    again = b"".join(map(seam.join, [ROLE, *words("\n", " ", "\n\n", "Well")]))
    left = "\n\n \n\nWell"[2:] if not before else "\nWell"
    assert "".join(each["choices"][0]["delta"]["content"] for each in events(again)) == (
        left if before else "\n \n\nWell"
    )
    assert events(again)[-1]["usage"] == usage(4)


def test_a_completion_goes_on_behind_its_spaces_too() -> None:
    blocks = [
        one({**HEAD, "choices": [{"index": 0, "text": text}], "usage": usage(made)})
        for made, text in enumerate("a ", 1)
    ]
    seam = seam_of(*blocks, route=Route.COMPLETIONS)
    assert asked(seam) == {"prompt": "Why?a ", "max_tokens": 98}
    assert events(seam.join(blocks[1]))[0]["choices"][0]["text"] == " "


# --- what only lacks its end ------------------------------------------------------------------------------------------


def test_an_answer_that_is_whole_gets_its_end() -> None:
    end = kept(ROLE, *words("a"), said({}, 2, "stop")).remainder()
    assert isinstance(end, bytes)
    assert end.endswith(DONE)
    assert events(end.removesuffix(DONE)) == [HEAD | {"choices": [], "usage": usage(2)}]


def test_an_event_without_choices_need_not_tell_the_usage() -> None:
    end = kept(one({**HEAD, "choices": []}), ROLE, *words("a"), said({}, 2, "stop")).remainder()
    assert isinstance(end, bytes)
    assert events(end.removesuffix(DONE)) == [HEAD | {"choices": [], "usage": usage(2)}]


def test_usage_that_was_told_is_not_told_again() -> None:
    told = one({**HEAD, "choices": [], "usage": usage(2)})
    assert kept(ROLE, *words("a"), said({}, 2, "stop"), told).remainder() == DONE


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS])
def test_an_answer_that_has_all_the_tokens_it_may_have_is_over(route: Route) -> None:
    blocks = [ROLE, *words("a", "b")]
    if route is Route.COMPLETIONS:
        blocks = [one({**HEAD, "choices": [{"index": 0, "text": "ab"}], "usage": usage(2)})]
    end = kept(*blocks, route=route, max_tokens=2).remainder()
    assert isinstance(end, bytes)
    last, counts = events(end.removesuffix(DONE))
    assert last["choices"][0]["finish_reason"] == "length"
    assert ("text" in last["choices"][0]) is (route is Route.COMPLETIONS)
    assert counts["usage"] == usage(2)


# --- the seam ---------------------------------------------------------------------------------------------------------


def test_events_of_another_replica_become_the_same_answers() -> None:
    seam = seam_of(ROLE, *words("a", "b"))
    role = said({"role": "assistant", "content": ""}, 0, head=OTHER)
    more = said({"content": "c"}, 1, head=OTHER)
    last = said({}, 1, "stop", head=OTHER)
    counts = one({**OTHER, "choices": [], "usage": usage(1, prompt=9, cached=9)})
    block = seam.join(role + more + last + counts + DONE)
    assert block.endswith(DONE)
    whole = usage(3)
    assert events(block.removesuffix(DONE)) == [
        {**OTHER, **HEAD, "choices": [{"index": 0, "delta": {"content": "c"}, "finish_reason": None}], "usage": whole},
        {**OTHER, **HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": whole},
        {**OTHER, **HEAD, "choices": [], "usage": whole},
    ]
    assert seam.counted


def test_a_role_beside_the_first_word_is_not_said_again() -> None:
    seam = seam_of(ROLE, *words("a"))
    (event,) = events(seam.join(said({"role": "assistant", "content": "b"}, 1)))
    assert event["choices"][0]["delta"] == {"content": "b"}


@pytest.mark.parametrize(
    ("pieces", "left"),
    [
        (["\n", "\n", "  x"], "  x"),
        (["\n\n  x"], "  x"),
        (["\n", "x", "\n"], "x\n"),
        (["x", "\n\n"], "x\n\n"),
        (["\n\n\n", "x"], "\nx"),
        ([" x"], " x"),
    ],
)
def test_spaces_at_the_seam_are_said_once(pieces: list[str], left: str) -> None:
    seam = seam_of(ROLE, *words("a", "\n\n"))
    told = events(b"".join(seam.join(each) for each in words(*pieces)))
    assert "".join(each["choices"][0]["delta"]["content"] for each in told) == left


def test_an_error_is_left_to_the_reader() -> None:
    seam = seam_of(ROLE, *words("a"))
    for error in (one({"error": {"message": "x"}}), one({"object": "error", "message": "x"}), b": ping\n\n"):
        assert seam.join(error) == error


def test_what_is_no_text_is_refused_and_what_cannot_be_read_is_nonsense() -> None:
    seam = seam_of(ROLE, *words("a"))
    with pytest.raises(EngineRefused):
        seam.join(said({"tool_calls": [{}]}, 1))
    with pytest.raises(EngineNonsense):
        seam.join(one({"choices": 5}))


def test_counts_that_cannot_be_true_are_no_counts() -> None:
    seam = seam_of(ROLE, *words("a"))
    seam.join(one({**OTHER, "choices": [{"index": 0, "delta": {"content": "b"}}], "usage": {"prompt_tokens": -1}}))
    assert not seam.counted
    assert seam.guess(5) == Usage(7, 6, 4)
