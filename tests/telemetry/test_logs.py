"""One line a request and one an event: for machines JSON, for people words, and never what a client whispered."""

import fcntl
import io
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Outcome
from app.generation import Usage
from app.telemetry import ear
from app.telemetry.base import EngineErrorSeen, ReplicaChanged
from app.telemetry.logs import LogWriter, RequestLog
from app.telemetry.record import Attempt, Keyed, Reason, Record
from app.telemetry.words import Words, word
from app.tenant import Priority
from app.trace import Trace
from tests.support.processes import comes_true


def record(**fields: Any) -> Record:
    usual = {"id": "req-1", "endpoint": "/v1/chat/completions", "method": "POST", "began": 100.0, "ended": 103.25}
    return Record(**{**usual, "status": 200, **fields})


FULL = record(
    model="demo",
    stream=True,
    parsed=100.0,
    received=100.0,
    first_byte=100.5,
    replica="a",
    attempts=2,
    usage=Usage(7, 4),
    error="EngineBroken",
    detail="500 boom",
    outcome=Outcome.INTERRUPTED,
)


def lines(*things: Any, as_json: bool) -> list[str]:
    stream = io.StringIO()
    writer = LogWriter(stream)
    log = RequestLog(writer, words=None if as_json else Words(coloured=False))
    for thing in things:
        if isinstance(thing, Record):
            log.began(thing)
            log.ended(thing)
        else:
            log.note(thing)
    writer.close()
    text = stream.getvalue()
    assert text == "" or text.endswith("\n")
    return text.split("\n")[:-1]


def test_a_traced_request_names_its_trace_and_its_span() -> None:
    (line,) = lines(record(trace=Trace("a" * 32, "b" * 16)), as_json=True)
    assert {"trace_id": "a" * 32, "span_id": "b" * 16}.items() <= json.loads(line).items()


def test_a_request_is_one_line_of_json_told_when_it_has_ended() -> None:
    (line,) = lines(FULL, as_json=True)
    told = json.loads(line)
    assert told.pop("ts").endswith("Z")
    assert told == {
        "event": "request",
        "request_id": "req-1",
        "method": "POST",
        "endpoint": "/v1/chat/completions",
        "status": 200,
        "outcome": "interrupted",
        "duration_ms": 3250.0,
        "model": "demo",
        "stream": True,
        "intake_ms": 0.0,
        "first_byte_ms": 500.0,
        "stream_ms": 2750.0,
        "replica": "a",
        "attempts": 2,
        "prompt_tokens": 7,
        "completion_tokens": 4,
        "error": "EngineBroken",
        "detail": "500 boom",
    }


def test_where_its_time_went_stands_in_its_line() -> None:
    whole = record(
        tenant="acme",
        priority=Priority.BATCH,
        received=100.0,
        parsed=100.01,
        allowed=100.03,
        waits=((100.04, 100.44), (101.1, 101.2)),
        queued_s=0.5,
        tries=(Attempt("a", 100.5, ended=101.0, error="EngineFailed"), Attempt("b", 101.25, ended=103.0)),
        first_byte=103.0,
        routed_by=Reason.LOAD,
        keyed=Keyed.FIRST,
        code="",
    )
    (line,) = lines(whole, as_json=True)
    told = json.loads(line)
    assert {name: value for name, value in told.items() if name.endswith("_ms")} == {
        "duration_ms": 3250.0,
        "intake_ms": 10.0,
        "limits_ms": 20.0,
        "queue_ms": 500.0,
        "route_ms": 70.0,
        "engine_ms": 2250.0,
        "first_byte_ms": 3000.0,
        "overhead_ms": 350.0,
    }
    assert (told["priority"], told["idempotency"]) == ("batch", "first")
    (line,) = lines(msgspec.structs.replace(whole, stream=True, events=9), as_json=True)
    told = json.loads(line)
    assert (told["stream_ms"], told["events"], told["overhead_ms"]) == (250.0, 9, 100.0)


def test_two_attempts_at_once_are_not_counted_twice() -> None:
    tries = (Attempt("a", 100.0, ended=101.0, outrun=True), Attempt("b", 100.5, ended=103.0, beside=True))
    (line,) = lines(record(parsed=100.0, tries=tries), as_json=True)
    assert json.loads(line)["engine_ms"] == 3000.0


def test_a_refusal_says_its_reason_and_a_replay_whose_answer_it_is() -> None:
    (line,) = lines(record(status=503, code="would_miss_deadline", outcome=Outcome.DEADLINE), as_json=True)
    assert json.loads(line)["code"] == "would_miss_deadline"
    again = record(parsed=100.0, keyed=Keyed.REPLAYED, replayed=True, answered_by="req-0")
    told = json.loads(lines(again, as_json=True)[0])
    assert (told["idempotency"], told["replayed"], told["answered_by"]) == ("replayed", True, "req-0")


def test_each_fact_stands_under_its_own_name_and_the_names_in_one_order() -> None:
    told = record(
        method="M",
        endpoint="/e",
        status=418,
        outcome=Outcome.INTERRUPTED,
        code="c",
        tenant="t",
        priority=Priority.BATCH,
        model="m",
        stream=True,
        began=1.0,
        received=2.0,
        parsed=2.001,
        allowed=2.003,
        queued_s=0.004,
        tries=(Attempt("a", 2.011, ended=2.027),),
        first_byte=2.064,
        ended=2.128,
        replica="r",
        routed_by=Reason.LOAD,
        attempts=3,
        taken_over=4,
        keyed=Keyed.RESUMED,
        replayed=True,
        answered_by="req-0",
        usage=Usage(5, 6, 7),
        events=8,
        error="E",
        detail="d",
        trace=Trace("a" * 32, "b" * 16),
    )
    (line,) = lines(told, as_json=True)
    assert line.partition('"request_id"')[2] == (
        ':"req-1","method":"M","endpoint":"/e","status":418,"outcome":"interrupted","duration_ms":1128.0,"code":"c",'
        '"tenant":"t","priority":"batch","model":"m","stream":true,"queue_ms":4.0,"intake_ms":1.0,"limits_ms":2.0,'
        '"route_ms":8.0,"engine_ms":16.0,"first_byte_ms":1064.0,"stream_ms":64.0,"overhead_ms":11.0,"replica":"r",'
        '"routed_by":"load","attempts":3,"taken_over":4,"idempotency":"resumed","replayed":true,"answered_by":"req-0",'
        '"prompt_tokens":5,"completion_tokens":6,"cached_tokens":7,"events":8,"error":"E","detail":"d",'
        f'"trace_id":"{"a" * 32}","span_id":"{"b" * 16}"}}'
    )


@given(st.floats(0, 1e6))
def test_times_are_told_to_a_hundredth_of_a_millisecond(seconds: float) -> None:
    (line,) = lines(record(began=0.0, ended=seconds), as_json=True)
    told = json.loads(line)["duration_ms"]
    assert told == round(told, 2) == pytest.approx(seconds * 1e3, rel=1e-12, abs=0.005 + 1e-9)


def test_what_is_not_known_is_not_told() -> None:
    (line,) = lines(record(), as_json=True)
    assert set(json.loads(line)) == {
        *("event", "ts", "request_id", "method", "endpoint", "status", "outcome", "duration_ms")
    }


def test_events_are_lines_too() -> None:
    seen = EngineErrorSeen("req-1", "a", "EngineFailed", "500 boom", retried=True)
    changed = ReplicaChanged("a", "failing", "EngineUnreachable")
    told = [json.loads(line) for line in lines(seen, changed, as_json=True)]
    assert [each["event"] for each in told] == ["EngineErrorSeen", "ReplicaChanged"]
    assert told[0]["retried"] is True
    assert told[1]["state"] == "failing"
    (line,) = lines(seen, as_json=False)
    assert line[8:] == (
        '  engine error seen: request_id=req-1 replica=a error=EngineFailed detail="500 boom" retried=True'
    )


def test_for_people_a_request_is_one_line_of_words_in_columns() -> None:
    interrupted, refused = lines(
        FULL,
        record(status=503, code="displaced", outcome=Outcome.QUEUE_FULL, model="demo", tenant="acme", ended=100.002),
        as_json=False,
    )
    assert interrupted[8:] == (
        "  200 interrupted       3.25 s  chat stream        demo  7+4 tokens  first 500 ms  a (attempt 2)  "
        '"500 boom"  req-1'
    )
    assert refused[8:] == "  503 queue_full        2.0 ms  chat               demo  acme  displaced  req-1"


HOSTILE = [
    'x\n{"event":"request","status":200}',
    "x\r\nstatus=200",
    "\x1b[2J\x1b[31mred",
    "\x9b2J",
    "x outcome=ok",
    'x"outcome=ok',
    '"',
    "x\x00y",
    "x\x7fy",
    "x\u2028y\u2029z\x85w",
    "\u202egnp.exe",
    "back\\slash n\\n",
    "",
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("as_json", [True, False])
def test_what_a_client_chooses_stays_inside_one_value_of_one_line(value: str, as_json: bool) -> None:
    hostile = record(model=value, method=value, detail=value)
    (line,) = lines(hostile, as_json=as_json)
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    if as_json:
        assert json.loads(line).get("model", "") == value
    else:
        (known,) = lines(record(model="m", method="M", detail="d"), as_json=False)
        assert len(columns(line)) == len(columns(known)) - (value == "") * 2, "an empty one is not told"
        assert line[8:40] == known[8:40]
        assert line.endswith("  req-1")


def columns(line: str) -> list[str]:
    return re.split(r"  +", line)


@given(st.text(max_size=40).filter(lambda text: "  " not in text))
def test_any_text_stays_one_word(value: str) -> None:
    (line,) = lines(record(model="m", method=value, detail="d"), as_json=False)
    assert line.isprintable()
    assert columns(line)[3:] == [f"{word(value)} /v1/chat/completions", "m", "d", "req-1"]


def test_lines_are_written_whole_and_in_order_when_many_threads_write() -> None:
    stream = io.StringIO()
    writer = LogWriter(stream)

    def write(name: int) -> None:
        for number in range(2_000):
            writer.write(f"{name} {number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    found = [tuple(map(int, line.split())) for line in stream.getvalue().splitlines()]
    assert sorted(found) == [(name, number) for name in range(8) for number in range(2_000)]
    for name in range(8):
        assert [number for each, number in found if each == name] == list(range(2_000))


def test_closing_writes_what_is_left_and_may_be_done_twice() -> None:
    stream = io.StringIO()
    writer = LogWriter(stream)
    writer.write("last words")
    writer.close()
    writer.close()
    assert stream.getvalue() == "last words\n"


class Broken(io.StringIO):
    """A pipe whose reader comes and goes."""

    broken = True

    def __init__(self) -> None:
        super().__init__()
        self.tried = threading.Event()

    def write(self, text: str) -> int:
        self.tried.set()
        if self.broken:
            raise BrokenPipeError
        return super().write(text)


def test_a_broken_pipe_does_not_end_the_writing() -> None:
    stream = Broken()
    writer = LogWriter(stream)
    writer.write("lost")
    assert stream.tried.wait(5)
    stream.broken = False
    writer.write("kept")
    writer.close()
    assert stream.getvalue().endswith("kept\n")
    assert writer.dropped == 1


def test_lines_that_nobody_takes_do_not_fill_the_memory() -> None:
    go_on = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            go_on.wait()
            return super().write(text)

    stream = Stuck()
    writer = LogWriter(stream)
    for number in range(300_000):
        writer.write(f"line {number}")
    held = writer.waiting
    go_on.set()
    writer.close()
    assert held <= 100_000
    assert writer.dropped + stream.getvalue().count("\n") == 300_000, "each line is written, or counted as lost"
    assert stream.getvalue().endswith("line 299999\n"), "the newest lines are the ones that are kept"


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A small one: where it is read, and where it is written."""
    out, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4_096)
    stream = os.fdopen(into, "w")
    yield out, stream
    os.close(out)
    with suppress(OSError):  # what nobody has read
        stream.close()


def test_a_reader_that_stops_keeps_nobody_and_has_every_line_when_it_goes_on(pipe: tuple[int, TextIO]) -> None:
    out, stream = pipe
    writer = LogWriter(stream)
    for number in range(1_000):
        writer.write(f"line {number}")
    assert comes_true(lambda: 0 < writer.waiting < 1_000, 5)
    assert not comes_true(lambda: not ear.is_open(stream) and writer.waiting == 0, 0.5), "the rest waits"
    read = b""
    while not read.endswith(b"line 999\n"):
        read += os.read(out, 65_536)
    writer.close()
    assert read.decode().split("\n") == [*(f"line {number}" for number in range(1_000)), ""]
    assert writer.dropped == 0


def test_the_end_waits_for_a_reader_that_has_stopped_no_longer_than_a_moment(pipe: tuple[int, TextIO]) -> None:
    _, stream = pipe
    writer = LogWriter(stream)
    for number in range(1_000):
        writer.write(f"line {number}")
    assert comes_true(lambda: not ear.is_open(stream), 5)
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 2
    assert writer.dropped == writer.waiting > 0
