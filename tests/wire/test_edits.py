"""Changing a field of a body: what is asked for changes, and every other byte stays what the client wrote."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wire.edits import add_fields, put_fields, remove_field, set_fields

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=8) | st.sampled_from(["usage", "stream", "}", '"', "{"]), VALUES, max_size=6)
SPACE = st.sampled_from(["", " ", "\n", "\t", "\r\n", "  \n  "])


@st.composite
def written(draw: st.DrawFn, value: dict[str, Any]) -> bytes:
    """`value` as one client or another writes it."""
    text = json.dumps(
        value,
        ensure_ascii=draw(st.booleans()),
        separators=(draw(SPACE) + "," + draw(SPACE), draw(SPACE) + ":" + draw(SPACE)),
        indent=draw(st.sampled_from([None, 0, 2])),
    )
    inside = text[1:-1] + draw(SPACE) if value else draw(SPACE)
    whole = draw(SPACE) + "{" + draw(SPACE) + inside + "}" + draw(SPACE)
    return whole.encode(errors="surrogatepass")


def no_surrogates(value: Any) -> bool:
    return not any(0xD800 <= ord(char) < 0xE000 for char in json.dumps(value, ensure_ascii=False))


BODIES = OBJECTS.filter(no_surrogates)


@given(BODIES, st.data())
def test_adding_keeps_every_byte_and_adds_what_is_asked(value: dict[str, Any], data: st.DataObject) -> None:
    body = data.draw(written(value))
    added = {"model": "demo", "stream_options": {"include_usage": True}}
    value = {name: kept for name, kept in value.items() if name not in added}
    edited = add_fields(body, **added)
    assert json.loads(edited) == {**json.loads(body), **added}
    assert edited.startswith(body.rstrip()[:-1])


@given(BODIES, st.data())
def test_setting_keeps_every_other_value(value: dict[str, Any], data: st.DataObject) -> None:
    body = data.draw(written(value))
    edited = set_fields(body, stream=True, model="é")
    assert json.loads(edited) == {**value, "stream": True, "model": "é"}
    assert list(json.loads(edited)) == list({**value, "stream": True, "model": "é"}), "fields stay in their places"


@given(BODIES, st.data())
def test_putting_sets_a_field_once_whether_or_not_it_stood_there(value: dict[str, Any], data: st.DataObject) -> None:
    body = data.draw(written(value))
    edited = put_fields(body, stream=True, model="é")
    pairs = json.loads(edited, object_pairs_hook=lambda pairs: pairs)
    assert dict(json.loads(edited)) == {**value, "stream": True, "model": "é"}
    assert [name for name, _ in pairs].count("stream") == 1


@given(BODIES, st.data())
def test_removing_keeps_every_other_value(value: dict[str, Any], data: st.DataObject) -> None:
    body = data.draw(written(value))
    kept = {name: each for name, each in value.items() if name != "usage"}
    assert json.loads(remove_field(body, "usage")) == kept


@pytest.mark.parametrize(
    ("body", "edited"),
    [
        (b"{}", b'{"n":1}'),
        (b" { } ", b' { "n":1}'),
        (b'{"a":{}}', b'{"a":{},"n":1}'),
        (b'{"a":"{"}', b'{"a":"{","n":1}'),
        (b'{"a":"}"}\n', b'{"a":"}","n":1}'),
        (b'{"a":1.50 }', b'{"a":1.50 ,"n":1}'),
        (b'{"a":"\xc3\xa9"}', b'{"a":"\xc3\xa9","n":1}'),
    ],
)
def test_a_field_is_added_at_the_end(body: bytes, edited: bytes) -> None:
    assert add_fields(body, n=1) == edited


def test_numbers_and_texts_keep_the_form_in_which_they_were_written() -> None:
    body = b'{"seed":12345678901234567890123, "t":1.500, "e":1E+2, "s":"\\u0041\\/", "stream_options": {"a" : null}}'
    edited = set_fields(body, stream_options={"include_usage": True})
    for kept in (b"12345678901234567890123", b"1.500", b"1E+2", b'"\\u0041\\/"'):
        assert kept in edited
    assert edited.count(b"stream_options") == 1


def test_a_field_that_stands_twice_is_set_once_and_for_all() -> None:
    assert set_fields(b'{"a":1,"stream":false,"a":2,"stream":null}', stream=True) == b'{"a":2,"stream":true}'
