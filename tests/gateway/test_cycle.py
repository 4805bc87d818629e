"""What goes out on the connection, and in how many writes."""

import asyncio
import logging
from typing import Any, cast

import pytest

from app.gateway.cycle import Cycle


class Wire:
    """A transport that remembers what was written to it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class Flow:
    write_paused = False

    def resume_reading(self) -> None: ...


def cycle(wire: Wire, method: str = "POST", *, keep_alive: bool = True) -> Cycle:
    log = logging.getLogger("test")
    return Cycle(
        scope=cast(Any, {"method": method}),
        transport=cast(Any, wire),
        flow=cast(Any, Flow()),
        logger=log,
        access_logger=log,
        access_log=False,
        default_headers=[(b"date", b"today")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: None,
    )


async def begin(one: Cycle, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await one.send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def body(one: Cycle, data: bytes, *, more: bool = False) -> None:
    await one.send({"type": "http.response.body", "body": data, "more_body": more})


async def test_a_part_is_written_at_once_where_nobody_has_to_wait() -> None:
    wire, flow = Wire(), Flow()
    one = cycle(wire)
    one.flow = cast(Any, flow)
    await begin(one, (b"x-a", b"b"))
    del wire.writes[:]
    assert one.takes(b"one")
    flow.write_paused = True
    assert not one.takes(b"two")
    flow.write_paused = False
    assert one.takes(b"three")
    one.disconnected = True
    assert not one.takes(b"four")
    assert wire.writes == [b"3\r\none\r\n", b"5\r\nthree\r\n"]
    assert not one.response_complete


async def test_an_answer_of_known_length_is_one_write() -> None:
    wire = Wire()
    one = cycle(wire)
    await begin(one, (b"content-length", b"2"), (b"x-a", b"b"))
    assert wire.writes == []
    await body(one, b"{}")
    assert wire.writes == [b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-length: 2\r\nx-a: b\r\n\r\n{}"]
    assert one.response_complete
    assert not wire.closed


async def test_a_stream_is_told_that_it_begins_and_then_comes_in_chunks() -> None:
    wire = Wire()
    one = cycle(wire)
    await begin(one, (b"content-type", b"text/event-stream"))
    assert wire.writes[0].endswith(b"\r\ntransfer-encoding: chunked\r\n\r\n")
    await body(one, b"data: 1\n\n", more=True)
    await body(one, b"", more=True)
    await body(one, b"last")
    assert wire.writes[1:] == [b"9\r\ndata: 1\n\n\r\n", b"4\r\nlast\r\n0\r\n\r\n"]


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
async def test_where_there_is_no_body_the_head_is_all(method: str, status: int) -> None:
    wire = Wire()
    one = cycle(wire, method)
    headers = [(b"content-length", b"2")] if method == "HEAD" else []
    await begin(one, *headers, status=status)
    await body(one, b"{}" if method == "HEAD" else b"")
    head = b"".join(wire.writes)
    assert head.endswith(b"\r\n\r\n")
    assert b"chunked" not in head
    assert one.response_complete


@pytest.mark.parametrize("said", [False, True])
async def test_the_last_answer_says_so_once_and_closes(said: bool) -> None:
    wire = Wire()
    one = cycle(wire, keep_alive=said)
    await begin(one, (b"content-length", b"0"), *([(b"connection", b"close")] if said else []))
    await body(one, b"")
    assert b"".join(wire.writes).count(b"connection: close\r\n") == 1
    assert wire.closed


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb"])
async def test_no_header_ever_becomes_two(value: bytes) -> None:
    wire = Wire()
    with pytest.raises(RuntimeError):
        await begin(cycle(wire), (b"x-a", value), (b"content-length", b"0"))
    assert wire.writes == []


@pytest.mark.parametrize("data", [b"a", b"abc"])
async def test_a_body_of_another_length_than_was_said_is_a_fault_of_ours(data: bytes) -> None:
    one = cycle(Wire())
    await begin(one, (b"content-length", b"2"))
    with pytest.raises(RuntimeError):
        await body(one, data)


async def test_nothing_is_written_before_the_beginning_or_after_the_end() -> None:
    one = cycle(Wire())
    with pytest.raises(RuntimeError):
        await body(one, b"")
    await begin(one, (b"content-length", b"0"))
    await body(one, b"")
    with pytest.raises(RuntimeError):
        await body(one, b"")


async def test_whoever_is_gone_is_written_nothing() -> None:
    wire = Wire()
    one = cycle(wire)
    one.disconnected = True
    await begin(one, (b"content-length", b"1"))
    await body(one, b"a")
    assert wire.writes == []


async def test_a_body_that_is_there_is_read_at_once_and_the_next_question_waits() -> None:
    one = cycle(Wire())
    one.body += b"{}"
    one.more_body = False
    one.message_event.set()
    assert await one.receive() == {"type": "http.request", "body": b"{}", "more_body": False}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.receive(), 0.01)
