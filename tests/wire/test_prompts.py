"""What an engine will read, in the order in which it reads it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.generation import Route
from app.wire.parsing import parse
from app.wire.prompts import prompt_of

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def read(route: Route, at_most: int = 10_000, **body: Any) -> bytes:
    return prompt_of(parse(route, json.dumps(body).encode()), at_most)


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@given(st.lists(st.text(), min_size=1, max_size=5), st.text())
def test_a_conversation_that_goes_on_begins_as_before(turns: list[str], more: str) -> None:
    messages = [says("user", turn) for turn in turns]
    before = read(Route.CHAT, messages=messages)
    assert read(Route.CHAT, messages=[*messages, says("user", more)]).startswith(before)


def test_what_engines_do_not_read_changes_nothing() -> None:
    messages = [says("system", "Be brief."), says("user", "Hello")]
    plain = read(Route.CHAT, messages=messages)
    assert read(Route.CHAT, temperature=0.3, seed=7, max_tokens=9, user="u", messages=messages) == plain


def test_tools_come_first() -> None:
    messages = [says("user", "Hello")]
    with_tool = read(Route.CHAT, messages=messages, tools=[TOOL])
    assert with_tool.index(b"look") < with_tool.index(b"Hello")
    assert not with_tool.startswith(read(Route.CHAT, messages=messages)[:10])


@pytest.mark.parametrize(
    ("route", "body", "order"),
    [
        (Route.COMPLETIONS, {"prompt": "one"}, [b"one"]),
        (Route.COMPLETIONS, {"prompt": ["one", "two"]}, [b"one", b"two"]),
        (Route.COMPLETIONS, {"prompt": [101, 102]}, [b"101", b"102"]),
        (Route.RESPONSES, {"instructions": "one", "input": "two"}, [b"one", b"two"]),
        (Route.RESPONSES, {"input": [says("user", "one"), says("user", "two")]}, [b"one", b"two"]),
        (Route.MESSAGES, {"max_tokens": 5, "messages": [says("user", "two")], "system": "one"}, [b"one", b"two"]),
        (Route.CHAT, {"messages": [says("user", [{"type": "text", "text": "one"}])]}, [b"one"]),
    ],
)
def test_each_endpoint_says_it_in_its_own_words(route: Route, body: dict[str, Any], order: list[bytes]) -> None:
    text = read(route, **body)
    places = [text.index(word) for word in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("route", "body"),
    [(Route.EMBEDDINGS, {"input": "x"}), (Route.TOKENIZE, {"prompt": "x"}), (Route.DETOKENIZE, {"tokens": [1]})],
)
def test_what_leaves_nothing_in_a_cache_is_not_read(route: Route, body: dict[str, Any]) -> None:
    assert read(route, **body) == b""


@given(st.integers(0, 400))
def test_no_more_is_read_than_asked_for(at_most: int) -> None:
    messages = [says("user", "x" * 50)] * 5
    assert read(Route.CHAT, at_most, messages=messages) == read(Route.CHAT, messages=messages)[:at_most]
