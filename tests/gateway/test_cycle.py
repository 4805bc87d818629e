"""What goes out on the connection, and in how many writes."""

import asyncio
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


def cycle(wire: Wire, method: str = "POST", *, keep_alive: bool = True, chunks: bool = True) -> Cycle:
    return Cycle(
        method,
        cast(Any, wire),
        cast(Any, Flow()),
        [(b"date", b"today")],
        lambda: None,
        lambda: None,
        began=0.0,
        expects_100=False,
        keep_alive=keep_alive,
        chunks=chunks,
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
    arrived(one, b"{}")
    assert await one.receive() == {"type": "http.request", "body": b"{}", "more_body": False}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.receive(), 0.01)


def arrived(one: Cycle, data: bytes) -> None:
    one.body, one.more_body = data, False
    one.message_event.set()


async def test_a_whole_body_is_given_once_and_without_waiting() -> None:
    one = cycle(Wire())
    assert one.whole_body() is None
    one.body = b"{"
    one.message_event.set()
    assert one.whole_body() is None
    arrived(one, b"{}")
    assert one.whole_body() == b"{}"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one.receive(), 0.01)


async def test_of_whoever_is_gone_no_body_is_looked_at() -> None:
    one = cycle(Wire())
    arrived(one, b"{}")
    one.lost()
    assert one.whole_body() is None
    assert await one.receive() == {"type": "http.disconnect"}


async def test_what_is_told_at_once_is_what_is_sent() -> None:
    wires = Wire(), Wire()
    messages: list[dict[str, Any]] = [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]},
        {"type": "http.response.body", "body": b"{}"},
    ]
    sends, tells = map(cycle, wires)
    for message in messages:
        await sends.send(message)
        assert tells.tells(message)
    assert wires[0].writes == wires[1].writes
    assert sends.response_complete
    assert tells.response_complete


async def test_nothing_is_told_at_once_to_whoever_must_be_waited_for_or_is_gone() -> None:
    wire, flow = Wire(), Flow()
    one = cycle(wire)
    one.flow = cast(Any, flow)
    start = {"type": "http.response.start", "status": 200, "headers": []}
    flow.write_paused = True
    assert not one.tells(start)
    flow.write_paused = False
    one.disconnected = True
    assert not one.tells(start)
    assert wire.writes == []
    assert not one.started


async def test_a_client_that_goes_is_told_to_whoever_works_for_it_also_after_the_answer() -> None:
    told: list[str] = []
    one = cycle(Wire())
    one.on_lost = lambda: told.append("lost")
    one.lost()
    assert (told, one.disconnected) == (["lost"], True)
    done = cycle(Wire())
    done.on_lost = lambda: told.append("late")
    await begin(done, (b"content-length", b"0"))
    await body(done, b"")
    done.lost()
    assert (told, done.disconnected) == (["lost", "late"], False)


@pytest.mark.parametrize("begins", [False, True])
async def test_an_application_that_does_not_answer_to_the_end_closes_the_connection(begins: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("a defect")

    wire = Wire()
    one = cycle(wire)
    await one.run(app, {}, set())
    assert wire.closed


async def test_after_its_end_a_request_holds_nothing_of_its_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    called: list[str] = []
    one = cycle(Wire())
    one._on_response = lambda: called.append("answered")
    await one.run(app, {}, set())
    one._on_response()
    assert called == ["answered"]


@pytest.mark.parametrize("how", ["answered", "failed", "cancelled"])
async def test_however_it_ends_the_server_is_told_that_nobody_works_on_it(how: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if how == "failed":
            raise RuntimeError("a defect")
        if how == "cancelled":
            await asyncio.sleep(60)

    one, tasks = cycle(Wire()), set[asyncio.Task[None]]()
    task = one.task = asyncio.get_running_loop().create_task(one.run(app, {}, tasks))
    tasks.add(task)
    await asyncio.sleep(0)
    if how == "cancelled":
        task.cancel()
    await asyncio.wait((task,))
    assert not tasks
    assert one.task is None


async def test_where_there_are_no_chunks_a_body_of_unknown_length_ends_with_the_connection() -> None:
    wire = Wire()
    one = cycle(wire, chunks=False)
    await begin(one)
    assert not one.takes(b"one")
    for data, more in (b"one", True), (b"", True), (b"two", True), (b"", False):
        await body(one, data, more=more)
    head, *parts = wire.writes
    assert head.endswith(b"connection: close\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert parts == [b"one", b"two"]
    assert (one.response_complete, wire.closed) == (True, True)
