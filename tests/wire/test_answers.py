"""What is read in an engine's answer: usage, the proper end, failures. All else reaches the client as it came."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EngineBroken, EngineNonsense
from app.generation import Call, Route, Usage
from app.wire.answers import AnswerStream, end_of, stream_reader, usage_of
from app.wire.sse import DONE, data_of, split

HEAD = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}


def one(payload: Any, **how: Any) -> bytes:
    return b"data: " + json.dumps(payload, **how).encode() + b"\n\n"


def chunk(content: str, **fields: Any) -> bytes:
    return one(HEAD | {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]} | fields)


USAGE_EVENT = one(HEAD | {"choices": [], "usage": USAGE})


def reader_of(route: Route, **how: Any) -> AnswerStream:
    return stream_reader(Call(id="r", route=route, model="demo", body=b"", expires_at=0, stream=True, **how))


def relayed(
    blocks: list[bytes], route: Route = Route.CHAT, *, whole: bool = True, **how: Any
) -> tuple[bytes, Usage | None]:
    reader = reader_of(route, **how)
    shown = b"".join(map(reader.read, blocks))
    if whole:
        reader.close()
    return shown, reader.usage


# --- chat and completions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [Route.CHAT, Route.COMPLETIONS])
def test_the_usage_event_is_counted_and_kept_from_who_did_not_ask(route: Route) -> None:
    blocks = [chunk("a"), chunk("b"), USAGE_EVENT, DONE]
    assert relayed(blocks, route) == (chunk("a") + chunk("b") + DONE, Usage(7, 4))


def test_who_asked_for_usage_gets_every_byte() -> None:
    blocks = [chunk("a"), USAGE_EVENT + DONE]
    assert relayed(blocks, shows_usage=True) == (b"".join(blocks), Usage(7, 4))


def test_usage_is_found_wherever_a_block_begins_and_ends() -> None:
    events = [chunk("a"), chunk("b"), USAGE_EVENT, DONE]
    expected = (chunk("a") + chunk("b") + DONE, Usage(7, 4))
    for border in range(5):
        blocks = [b"".join(events[:border]), b"".join(events[border:])]
        assert relayed([block for block in blocks if block]) == expected


@pytest.mark.parametrize("how", [{"separators": (",", ":")}, {"separators": (" , ", " : ")}, {}])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\n\r\n"])
def test_usage_is_found_however_an_engine_writes_it(how: dict[str, Any], end: bytes) -> None:
    usage = one(HEAD | {"choices": [], "usage": USAGE}, **how).replace(b"\n\n", end)
    assert relayed([chunk("a") + usage, DONE]) == (chunk("a") + DONE, Usage(7, 4))


def test_usage_beside_the_last_choice_is_taken_out_and_the_choice_kept() -> None:
    shown, usage = relayed([chunk("a", usage=USAGE), DONE])
    assert usage == Usage(7, 4)
    first, last = split(shown)
    assert json.loads(data_of(first)) == json.loads(data_of(chunk("a")))
    assert last == DONE


# --- counts along the way -----------------------------------------------------------------------------------------


def so_far(completion_tokens: int) -> dict[str, Any]:
    return {
        "usage": {"prompt_tokens": 7, "total_tokens": 7 + completion_tokens, "completion_tokens": completion_tokens}
    }


COMPACT: dict[str, Any] = {"separators": (",", ":")}


def counted(content: str, completion_tokens: int) -> bytes:
    delta = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return one(HEAD | {"choices": [delta]} | so_far(completion_tokens), **COMPACT)


def uncounted(content: str) -> bytes:
    return one(HEAD | {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}, **COMPACT)


@pytest.mark.parametrize("shows_usage", [False, True])
def test_a_count_along_the_way_is_not_shown_wherever_it_stands(shows_usage: bool) -> None:
    """vLLM writes it before the last fields of a stream's first chunk."""
    choices = [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    after = {"prompt_token_ids": None, "prompt_text": None}
    reader = reader_of(Route.CHAT, counts_along=True, shows_usage=shows_usage)
    shown = reader.read(one(HEAD | {"choices": choices} | so_far(0) | after, **COMPACT))
    assert json.loads(data_of(shown)) == HEAD | {"choices": choices} | after
    assert reader.usage == Usage(7, 0)


def test_counts_along_the_way_are_known_at_any_moment_and_never_shown() -> None:
    reader = reader_of(Route.CHAT, counts_along=True)
    for number, word in enumerate(("a", "b", "c"), start=1):
        assert reader.read(counted(word, number)) == uncounted(word)
        assert reader.usage == Usage(7, number)
    assert reader.events == 3


def test_counts_along_the_way_leave_the_final_count_to_who_asked_for_it() -> None:
    final = one(HEAD | {"choices": []} | so_far(2), **COMPACT)
    blocks = [counted("a", 1) + counted("b", 2), final + DONE]
    asked = relayed(blocks, shows_usage=True, counts_along=True)
    assert asked == (uncounted("a") + uncounted("b") + final + DONE, Usage(7, 2))
    assert relayed(blocks, counts_along=True) == (uncounted("a") + uncounted("b") + DONE, Usage(7, 2))


def of_choice(index: int, prompt_tokens: int, completion_tokens: int, **how: Any) -> bytes:
    choice = {"delta": {"content": "a", "tool_calls": [{"index": 3}]}, "index": index}
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return one(HEAD | {"choices": [choice], "usage": usage}, **how)


@pytest.mark.parametrize("how", [COMPACT, {}])
@pytest.mark.parametrize("asked", [{"counts_along": True}, {"shows_usage": True}])
def test_counts_along_the_way_are_those_of_single_choices(how: dict[str, Any], asked: dict[str, bool]) -> None:
    """As vLLM and SGLang tell them. Only the last one is of all."""
    reader = reader_of(Route.CHAT, choices=2, **asked)
    reader.read(of_choice(0, 7, 1, **how))
    assert reader.usage == Usage(7, 1)
    reader.read(of_choice(1, 7, 1, **how) + of_choice(0, 7, 2, **how))
    reader.read(of_choice(0, 7, 3, **how))
    assert reader.usage == Usage(7, 4)
    reader.read(one(HEAD | {"choices": [], "usage": USAGE | {"completion_tokens": 9}}, **how))
    assert reader.usage == Usage(7, 9)


def test_more_choices_than_were_asked_for_are_not_remembered_one_by_one() -> None:
    reader = reader_of(Route.CHAT, choices=2, counts_along=True)
    for index in range(1_000):
        reader.read(of_choice(index, 7, 1, **COMPACT))
    assert reader.usage == Usage(7, 2)


def test_each_of_several_prompts_counts_once() -> None:
    reader = reader_of(Route.COMPLETIONS, choices=4, prompts=2, counts_along=True)
    for index, (prompt_tokens, made) in enumerate([(7, 1), (7, 2), (30, 3), (30, 4)]):
        reader.read(of_choice(index, prompt_tokens, made, **COMPACT))
    assert reader.usage == Usage(37, 10)


def test_what_only_looks_like_a_count_is_the_models_own_text() -> None:
    text = uncounted('","usage":{"completion_tokens":9}}\n\n')
    assert relayed([text, DONE], counts_along=True) == (text + DONE, None)


def test_counts_with_details_are_cut_out_too() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
    block = one(
        HEAD | {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}], "usage": usage}, **COMPACT
    )
    assert relayed([block, DONE], counts_along=True) == (uncounted("a") + DONE, Usage(7, 1, 4))


def test_what_stands_beside_usage_keeps_the_form_in_which_it_was_written() -> None:
    choices = (
        rb'[{"index":0, "delta":{"content":"\ud83d\ude00\/"},"logprobs":{"x":-0.00,"big":123456789012345678901234}}]'
    )
    shown, usage = relayed([b'data: {"choices":' + choices + b',"usage":{"completion_tokens":4}}\n\n', DONE])
    assert choices in shown
    assert usage == Usage(0, 4)


def test_the_last_of_continuous_usages_counts() -> None:
    blocks = [chunk("a", usage=USAGE | {"completion_tokens": n}) for n in (1, 2, 3)]
    shown, usage = relayed([*blocks, DONE])
    assert usage == Usage(7, 3)
    assert b"usage" not in shown


def test_usage_that_is_null_passes_as_it_came() -> None:
    blocks = [chunk("a", usage=None), USAGE_EVENT, DONE]
    assert relayed(blocks) == (blocks[0] + DONE, Usage(7, 4))


def test_cached_tokens_are_counted() -> None:
    details = USAGE | {"prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": None}}
    assert relayed([one(HEAD | {"choices": [], "usage": details}), DONE])[1] == Usage(7, 4, 5)
    none = USAGE | {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": 2}}
    assert relayed([one(HEAD | {"choices": [], "usage": none}), DONE])[1] == Usage(7, 4, 0)


LOOKALIKES = [
    json.dumps(HEAD | {"choices": [], "usage": USAGE}),
    '"usage"',
    "usage",
    '{"error": {"message": "no"}}',
    'data: {"error"',
    "data: [DONE]",
    "\ndata: [DONE]\n\n",
    "event: error\n",
    "event: message_stop\n",
    "event: response.completed\n",
]


@pytest.mark.parametrize("text", LOOKALIKES)
@pytest.mark.parametrize("field", ["content", "usage", "error"])
def test_text_that_only_looks_like_something_is_not_touched(text: str, field: str) -> None:
    blocks = [
        one(HEAD | {"choices": [{"index": 0, "delta": {field: text, "arguments": text}}]}),
        one(HEAD | {"choices": [{"index": 0, "delta": {"content": field}}]}),
    ]
    assert relayed([*blocks, DONE]) == (b"".join(blocks) + DONE, None)


@pytest.mark.parametrize("text", LOOKALIKES)
def test_text_that_looks_like_the_end_is_not_the_end(text: str) -> None:
    with pytest.raises(EngineBroken):
        relayed([chunk(text)])


CHUNKS = st.builds(
    lambda text, extra, spaced: one(
        HEAD | {"choices": [{"index": 0, "delta": {"content": text}}]} | extra,
        separators=(", ", ": ") if spaced else (",", ":"),
        ensure_ascii=not spaced,
    ),
    st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(LOOKALIKES),
    st.sampled_from([{}, {"usage": None}, {"error": None}, {"service_tier": "usage"}]),
    st.booleans(),
)
OTHERS = st.sampled_from(
    [b": ping\n\n", b": ping\r\n\r\n", b"event: x\ndata: y\n\n", b'data: {"usage"\n\n', b"data:\n\n"]
)


@given(
    st.lists(CHUNKS | OTHERS, max_size=8),
    st.integers(0, 8),
    st.lists(st.integers(0, 10), max_size=5),
    st.sampled_from([DONE, b"data:[DONE]\r\n\r\n"]),
)
def test_of_any_stream_the_client_gets_every_byte_but_the_usage(
    events: list[bytes], place: int, borders: list[int], done: bytes
) -> None:
    with_usage = [*events[:place], USAGE_EVENT, *events[place:], done]
    edges = sorted({min(border, len(with_usage)) for border in borders} | {0, len(with_usage)})
    blocks = [b"".join(with_usage[start:end]) for start, end in pairwise(edges)]
    assert relayed(blocks) == (b"".join([*events, done]), Usage(7, 4))
    assert relayed(blocks, shows_usage=True) == (b"".join(with_usage), Usage(7, 4))


@given(st.lists(st.binary(max_size=60).map(lambda junk: b"data: " + junk + b'"usage""error"[DONE]\n\n'), max_size=4))
def test_nonsense_from_an_engine_is_passed_on_or_refused_and_nothing_worse(blocks: list[bytes]) -> None:
    for route in (Route.CHAT, Route.RESPONSES, Route.MESSAGES):
        relayed(blocks, route, whole=False)


@pytest.mark.parametrize(
    "counts",
    [
        {"prompt_tokens": -1},
        {"completion_tokens": 1.5},
        {"completion_tokens": "9"},
        "many",
        [],
        {"prompt_tokens": 2**80},
        {"completion_tokens": 2**32 - 1},
        {"completion_tokens": 2**31 - 1},
    ],
)
def test_usage_that_cannot_be_true_is_not_believed_and_not_shown(counts: Any) -> None:
    assert relayed([one(HEAD | {"choices": [], "usage": counts}), DONE]) == (DONE, None)
    assert usage_of(json.dumps(HEAD | {"usage": counts}).encode()) is None


def test_usage_nested_without_end_is_passed_on_unread() -> None:
    deep = b'data: {"choices":' + b"[" * 5_000 + b"]" * 5_000 + b',"usage":{}}\n\n'
    assert relayed([deep, DONE]) == (deep + DONE, None)


@pytest.mark.parametrize(
    "failure",
    [
        b'data: {"error":{"message":"CUDA error","code":500}}\n\n',
        b'data: {"error": {"message": "CUDA error", "code": 500}}\n\n',
        b'data:{ "error" : "CUDA error" }\n\n',
        b'data: {"object":"error","message":"CUDA error"}\n\n',
        b'data: {"object": "error", "message": "CUDA error", "code": 500}\n\n',
        b'data: {"id":"x","choices":[],"error":{"message":"CUDA error"}}\r\n\r\n',
        b'data: {"error":{"message":"CUDA error"},"usage":{"prompt_tokens":7},"choices":[]}\n\n',
    ],
)
@pytest.mark.parametrize("around", [b"", chunk("a")])
def test_an_error_inside_a_stream_is_a_failure_with_the_engines_words_for_the_log(
    failure: bytes, around: bytes
) -> None:
    reader = reader_of(Route.CHAT)
    with pytest.raises(EngineBroken) as caught:
        reader.read(around + failure + DONE)
    assert "CUDA error" in caught.value.detail
    assert "CUDA" not in caught.value.message
    assert len(caught.value.detail) <= 500


@pytest.mark.parametrize("field", [{"error": None}, {"finish_reason": "error"}, {"object": "error.not"}])
def test_the_word_error_alone_is_no_failure(field: dict[str, Any]) -> None:
    assert relayed([one(HEAD | {"choices": []} | field), DONE])[0]


@pytest.mark.parametrize(
    "end", [DONE, b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", chunk("a") + DONE, DONE + b": bye\n\n", DONE + b"\n"]
)
def test_a_stream_ends_properly_with_done(end: bytes) -> None:
    assert relayed([chunk("a"), end])[0] == chunk("a") + end


def test_a_comment_after_the_end_does_not_undo_it() -> None:
    relayed([chunk("a"), DONE, b": bye\n\n"])


@pytest.mark.parametrize("blocks", [[], [chunk("a")], [b": ping\n\n"], [b"data: [DON]\n\n"], [b": data: [DONE]\n\n"]])
def test_a_stream_without_done_is_broken(blocks: list[bytes]) -> None:
    with pytest.raises(EngineBroken):
        relayed(blocks)


# --- responses and messages ---------------------------------------------------------------------------------------


def named(name: str, payload: Any, end: bytes = b"\n") -> bytes:
    return b"event: " + name.encode() + end + b"data: " + json.dumps(payload).encode() + end + end


ENDS = pytest.mark.parametrize("end", [b"\n", b"\r\n"])
RESPONSE_USAGE = {"input_tokens": 7, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 3}}


@ENDS
@pytest.mark.parametrize("name", ["response.completed", "response.incomplete"])
def test_a_response_ends_with_its_usage_and_passes_whole(name: str, end: bytes) -> None:
    blocks = [
        named("response.created", {"response": {"id": "r", "usage": None}}, end),
        named("response.output_text.delta", {"delta": "event: error\n"}, end),
        named(name, {"response": {"id": "r", "usage": RESPONSE_USAGE}}, end),
    ]
    assert relayed(blocks, Route.RESPONSES) == (b"".join(blocks), Usage(7, 4, 3))


@ENDS
def test_a_message_counts_its_prompt_at_the_start_and_its_answer_at_the_end(end: bytes) -> None:
    start = {"message": {"usage": {"input_tokens": 7, "output_tokens": 1, "cache_read_input_tokens": 2}}}
    blocks = [
        named("message_start", start, end),
        named("content_block_delta", {"delta": {"text": "event: message_stop\n"}}, end),
        named("message_delta", {"delta": {}, "usage": {"output_tokens": 4}}, end)
        + named("message_stop", {"type": "message_stop"}, end),
    ]
    assert relayed(blocks, Route.MESSAGES) == (b"".join(blocks), Usage(7, 4, 2))


@ENDS
@pytest.mark.parametrize(
    ("route", "name"),
    [(Route.RESPONSES, "response.failed"), (Route.RESPONSES, "error"), (Route.MESSAGES, "error")],
)
def test_a_named_failure_is_a_failure(route: Route, name: str, end: bytes) -> None:
    reader = reader_of(route, shows_usage=True)
    with pytest.raises(EngineBroken) as caught:
        reader.read(named(name, {"error": {"message": "CUDA error"}, "response": {"usage": RESPONSE_USAGE}}, end))
    assert "CUDA error" in caught.value.detail
    assert reader.usage == Usage(7, 4, 3)


@pytest.mark.parametrize(
    ("route", "blocks"),
    [
        (Route.RESPONSES, [named("response.created", {})]),
        (Route.RESPONSES, [DONE]),
        (Route.MESSAGES, [named("message_delta", {"usage": {"output_tokens": 4}})]),
        (Route.MESSAGES, [named("message_stop.not", {})]),
        (Route.MESSAGES, []),
    ],
)
def test_a_named_stream_without_its_last_event_is_broken(route: Route, blocks: list[bytes]) -> None:
    with pytest.raises(EngineBroken):
        relayed(blocks, route)


# --- whole answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        (USAGE, Usage(7, 4)),
        ({"prompt_tokens": 7, "total_tokens": 7}, Usage(7, 0)),
        (RESPONSE_USAGE, Usage(7, 4, 3)),
        ({"input_tokens": 7, "output_tokens": 4, "cache_read_input_tokens": 2}, Usage(7, 4, 2)),
        (None, None),
    ],
)
def test_a_whole_answer_says_what_it_used_in_each_dialect(usage: Any, read: Usage | None) -> None:
    assert usage_of(json.dumps(HEAD | {"choices": [], "usage": usage}).encode()) == read


def test_a_whole_answer_without_usage_is_an_answer() -> None:
    assert usage_of(b'{"tokens":[1,2],"count":2}') is None


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"a":', b"[]", b'"x"', b"{} {}", b'{"a":' * 5_000])
def test_a_whole_answer_that_is_no_json_object_is_nonsense(body: bytes) -> None:
    with pytest.raises(EngineNonsense):
        usage_of(body)


@pytest.mark.parametrize(
    ("block", "ends"),
    [
        (b"data: [DONE]\n\n", True),
        (b'data: {"a":1}\n\ndata: [DONE]\n\n', True),
        (b'data: {"a":1}\r\n\r\ndata: [DONE]\r\n\r\n', True),
        (b"data:[DONE]\n\n", True),
        (b": data: [DONE]\n\n", False),
        (b": and it said data: [DONE]\n\n", False),
        (b'data: {"a":"data: [DONE]"}\n\n', False),
        (b'data: [DONE]\n\ndata: {"a":1}\n\n', False),
        (b"", False),
    ],
)
def test_only_a_line_of_its_own_is_the_end_of_a_stream(block: bytes, ends: bool) -> None:
    assert end_of(Route.CHAT)(block) is ends
