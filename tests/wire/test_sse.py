"""Event streams as bytes: however the network tears them, whole events come out, and nothing is lost or added."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import EngineNonsense
from app.wire.sse import DONE, EventCutter, data_of, event, split
from tests.wire.streams import cut, events, streams

ROOM = 1_000_000


def fed(pieces: list[bytes], room: int = ROOM) -> tuple[list[bytes], bytes]:
    cutter = EventCutter(room)
    blocks = [block for piece in pieces if (block := cutter.feed(piece))]
    return blocks, cutter.rest()


def ends_whole(block: bytes) -> bool:
    return block.endswith((b"\n\n", b"\n\r\n"))


STREAM = (
    b": a comment\n\n"
    b'data: {"a":1}\n\n'
    b"event: named\r\nid: 7\r\ndata: one\r\ndata: two\r\n\r\n"
    b"data: mixed ends\n\r\n"
    b"data: mixed the other way\r\n\n"
    b"retry: 10\n\n\n"
    b"data: \xc3\xa9\xf0\x9f\x98\x80\r\n\r\n"
    b"data: [DONE]\n\n"
)


def test_a_stream_fed_byte_by_byte_comes_out_in_whole_events() -> None:
    blocks, rest = fed([STREAM[at : at + 1] for at in range(len(STREAM))])
    assert b"".join(blocks) == STREAM
    assert all(ends_whole(block) or block == b"\n" for block in blocks)
    assert rest == b""


@pytest.mark.parametrize("at", range(len(STREAM) + 1))
def test_a_stream_torn_at_any_byte_comes_out_whole(at: int) -> None:
    blocks, rest = fed([STREAM[:at], STREAM[at:]])
    assert b"".join(blocks) == STREAM
    assert all(map(ends_whole, blocks))
    assert rest == b""


@given(st.data())
def test_any_stream_torn_anyhow_gives_the_same_bytes_in_whole_events(data: st.DataObject) -> None:
    stream = b"".join(data.draw(streams()))
    blocks, rest = fed(data.draw(cut(stream)))
    assert b"".join(blocks) + rest == stream
    assert all(map(ends_whole, blocks))
    assert rest == b""


@given(st.binary(max_size=200), st.data())
def test_any_bytes_at_all_come_out_as_they_went_in(stream: bytes, data: st.DataObject) -> None:
    blocks, rest = fed(data.draw(cut(stream)))
    assert b"".join(blocks) + rest == stream


@given(st.data())
def test_a_block_is_given_as_soon_as_its_last_event_is_whole(data: st.DataObject) -> None:
    """Nobody waits for the next event to get this one."""
    one = data.draw(events())
    cutter = EventCutter(ROOM)
    given_back = b"".join(cutter.feed(piece) for piece in data.draw(cut(one)))
    assert given_back == one


def test_an_event_that_never_got_its_blank_line_is_the_rest() -> None:
    blocks, rest = fed([b"data: a\n\ndata: b\n"])
    assert (blocks, rest) == ([b"data: a\n\n"], b"data: b\n")


def test_whole_events_are_given_back_without_a_copy() -> None:
    data = b"data: a\n\ndata: b\n\n"
    assert EventCutter(ROOM).feed(data) is data


def test_an_event_larger_than_allowed_is_nonsense() -> None:
    with pytest.raises(EngineNonsense):
        fed([b"data: " + b"x" * 100], room=100)
    with pytest.raises(EngineNonsense):
        fed([b"data: a\n\n", b"data: ", b"x" * 60, b"x" * 60], room=100)
    assert fed([b"data: " + b"x" * 60 + b"\n\n"] * 3, room=100)[1] == b""


def test_a_very_long_event_in_very_many_pieces_is_not_searched_again_and_again() -> None:
    """A million pieces of four bytes: quadratic work would be 2 TB of copying, linear work is a moment."""
    cutter = EventCutter(8_000_000)
    for _ in range(1_000_000):
        assert cutter.feed(b"xxxx") == b""
    assert len(cutter.feed(b"\r\n\r\n")) == 4_000_004


def test_an_event_carries_its_data_lines_joined_by_newlines() -> None:
    assert data_of(b"data: a\n\n") == b"a"
    assert data_of(b"data:a\n\n") == b"a"
    assert data_of(b"data:  a\n\n") == b" a"
    assert data_of(b"event: x\r\nid: 1\r\ndata: a\r\ndata: b\r\n\r\n") == b"a\nb"
    assert data_of(b": only a comment\n\n") == b""
    assert data_of(b"database: no\n\n") == b""


@given(st.data())
def test_a_block_splits_into_its_events_and_nothing_else(data: st.DataObject) -> None:
    parts = data.draw(streams())
    assert split(b"".join(parts)) == parts


def test_blank_lines_beyond_the_first_stay_with_an_event() -> None:
    block = b"data: a\n\n\n\ndata: b\r\n\r\n\r\ndata: c\n\n"
    assert b"".join(split(block)) == block
    assert [data_of(one) for one in split(block) if data_of(one)] == [b"a", b"b", b"c"]


def test_an_event_that_we_write_is_one_line_of_json() -> None:
    payload = {"text": "two\nlines, é and \r\n\r\n"}
    one = event(payload)
    assert one.count(b"\n") == 2
    assert one.endswith(b"\n\n")
    assert json.loads(data_of(one)) == payload
    assert data_of(DONE) == b"[DONE]"


PIECES = (b"data: ", b"data:", b"a", b"\n", b"\n\n", b"\r\n", b"\r", b" ", b"event: x\n")


@pytest.mark.parametrize("count", range(6))
def test_what_is_usual_is_read_as_anything_else_is(count: int) -> None:
    """There are short cuts for it."""
    for pieces in itertools.product(PIECES, repeat=count):
        block = b"".join(pieces)
        lines = [line[5:].removeprefix(b" ") for line in block.splitlines() if line.startswith(b"data:")]
        assert data_of(block) == b"\n".join(lines)
        marked = re.sub(rb"\n(?:\r?\n)+", rb"\g<0>|", block)
        assert split(block) == [one for one in marked.split(b"|") if one]
