"""One line a request and one an event, written by a thread of its own so that a slow terminal slows no request."""

import json
import sys
import threading
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import IO, Any

import msgspec

from app.generation import Usage
from app.telemetry import ear
from app.telemetry.base import Backend, Event
from app.telemetry.phases import engine_s, phases_of
from app.telemetry.record import Record
from app.telemetry.words import PRIORITIES, Words

_NO_USAGE = Usage()
_DELETE = "\x7f"

_encode = msgspec.json.Encoder().encode

UNKNOWN = 0.0
"""Left out of a line, which has every other 0.0: it is this very object that its fields begin with."""

FLUSH_S = 0.1
"""Waking the thread for each line would cost more than the line; this is how late one may be."""

LAST_S = 1.0
"""A pipe or a terminal may take so long to take the next of the last lines."""

MAX_WAITING = 100_000
"""Lines kept for a terminal or a pipe that does not take them. Then the oldest are lost, not the requests."""


class LogWriter:
    """Takes lines from any thread and writes them in batches. Closing writes what is left."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self.dropped = 0
        """Lines that nobody will read."""
        self._lines: deque[str] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        if len(self._lines) >= MAX_WAITING:
            with suppress(IndexError):  # the thread has just taken them all
                self._lines.popleft()
                self.dropped += 1
        self._lines.append(line)

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_S):
            self._flush(FLUSH_S)
        self._flush(LAST_S)
        self.dropped += len(self._lines)

    def _flush(self, patience_s: float) -> None:
        """What is not taken now waits. A write that hung would have the stream's lock, which others need: whoever ends
        the process, at last."""
        while self._lines and ear.is_open(self._stream, patience_s):
            batch = self._batch()
            try:
                self._stream.write("\n".join(batch) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more, or not now: later lines are tried again
                self.dropped += len(batch)

    def _batch(self) -> list[str]:
        batch: list[str] = []
        size = 0
        while self._lines:
            size += len(self._lines[0].encode(errors="replace")) + 1
            if batch and size > ear.SURELY_TAKEN:
                break
            batch.append(self._lines.popleft())
        return batch

    @property
    def waiting(self) -> int:
        return len(self._lines)

    def close(self) -> None:
        self._closing.set()
        self._thread.join(timeout=2)


class RequestLine(msgspec.Struct, tag_field="event", tag="request", omit_defaults=True):
    """What is told of a request. Never a prompt, never a key."""

    ts: datetime
    request_id: str
    method: str
    endpoint: str
    status: int
    outcome: str
    duration_ms: float
    code: str = ""
    tenant: str = ""
    priority: str = ""
    model: str = ""
    stream: bool = False
    queue_ms: float = UNKNOWN
    intake_ms: float = UNKNOWN
    limits_ms: float = UNKNOWN
    route_ms: float = UNKNOWN
    engine_ms: float = UNKNOWN
    first_byte_ms: float = UNKNOWN
    stream_ms: float = UNKNOWN
    overhead_ms: float = UNKNOWN
    replica: str = ""
    routed_by: str = ""
    attempts: int = 0
    taken_over: int = 0
    idempotency: str = ""
    replayed: bool = False
    answered_by: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    events: int = 0
    error: str = ""
    detail: str = ""
    trace_id: str = ""
    span_id: str = ""

    @classmethod
    def of(cls, record: Record) -> "RequestLine":
        """By position: with names it would take twice as long."""
        began, first_byte, ended, trace = record.began, record.first_byte, record.ended, record.trace
        phases = phases_of(record)
        usage, known = record.usage or _NO_USAGE, record.keyed is not None
        return cls(
            datetime.now(UTC),
            record.id,
            record.method,
            record.endpoint,
            record.status,
            record.outcome,
            _ms(ended - began),
            record.code,
            record.tenant,
            PRIORITIES[record.priority] if record.priority is not None else "",
            record.model,
            record.stream,
            _ms(record.queued_s) if record.queued_s else UNKNOWN,
            _ms(record.parsed - record.received) if record.parsed else UNKNOWN,
            _ms(phases.limits) if phases is not None else UNKNOWN,
            _ms(phases.route) if phases is not None else UNKNOWN,
            _ms(engine_s(record)) if phases is not None else UNKNOWN,
            _ms(first_byte - began) if first_byte else UNKNOWN,
            _ms(ended - first_byte) if first_byte and record.stream else UNKNOWN,
            _ms(phases.total) if phases is not None else UNKNOWN,
            record.replica,
            record.routed_by or "",
            record.attempts,
            record.taken_over,
            record.keyed or "",
            known and record.replayed,
            record.answered_by if known else "",
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            record.events,
            record.error,
            record.detail,
            trace.trace_id if trace is not None else "",
            trace.span_id if trace is not None else "",
        )


class RequestLog(Backend):
    """Requests and events as lines: JSON for machines, words for people. A request is told once, when it ended."""

    def __init__(self, writer: LogWriter, *, words: Words | None, unlogged: Collection[str] = ()) -> None:
        """Without `words`, JSON. `unlogged`: endpoints that machines ask every few seconds, whose lines would bury the
        others."""
        self._write = writer.write
        self._words = words
        self._unlogged = unlogged

    def ended(self, record: Record) -> None:
        if record.endpoint not in self._unlogged:
            self._write(self._words.request(record) if self._words is not None else _json(RequestLine.of(record)))

    def note(self, event: Event) -> None:
        if self._words is not None:
            self._write(self._words.event(event))
        else:
            self._write(_json({"event": type(event).__name__, "ts": datetime.now(UTC), **asdict(event)}))


def _ms(seconds: float) -> float:
    """To a hundredth. `round` goes by way of a text, and takes three times as long."""
    return (seconds * 1e5 + 0.5) // 1 / 100


def _json(facts: Any) -> str:
    """JSON leaves some characters as they are that move a terminal's cursor, or look like a new line."""
    text = _encode(facts).decode()
    if text.isascii() and _DELETE not in text:  # of these it is the only one that JSON leaves
        return text
    return text if text.isprintable() else json.dumps(json.loads(text))
