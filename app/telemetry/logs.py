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

from app.telemetry.base import Event
from app.telemetry.phases import engine_s, phases_of
from app.telemetry.record import Record
from app.telemetry.words import PRIORITIES, Words

_encode = msgspec.json.Encoder().encode

FLUSH_S = 0.1
"""Waking the thread for each line would cost more than the line; this is how late one may be."""

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
            self._flush()
        self._flush()

    def _flush(self) -> None:
        if self._lines:
            batch = [self._lines.popleft() for _ in range(len(self._lines))]
            try:
                self._stream.write("\n".join(batch) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more, or not now: later lines are tried again
                self.dropped += len(batch)

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
    queue_ms: float = 0.0
    intake_ms: float = 0.0
    limits_ms: float = 0.0
    route_ms: float = 0.0
    engine_ms: float = 0.0
    first_byte_ms: float = 0.0
    stream_ms: float = 0.0
    overhead_ms: float = 0.0
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
        line = cls(
            datetime.now(UTC),
            record.id,
            record.method,
            record.endpoint,
            record.status,
            record.outcome,
            _ms(record.ended - record.began),
            code=record.code,
            tenant=record.tenant,
            model=record.model,
            stream=record.stream,
            replica=record.replica,
            routed_by=record.routed_by or "",
            attempts=record.attempts,
            error=record.error,
            detail=record.detail,
        )
        if record.parsed:
            line._tell_call(record)
        if record.trace is not None:
            line.trace_id, line.span_id = record.trace.trace_id, record.trace.span_id
        return line

    def _tell_call(self, record: Record) -> None:
        """What it has that came as far as to be understood."""
        self.priority = PRIORITIES[record.priority] if record.priority is not None else ""
        self.intake_ms = _ms(record.parsed - record.received)
        if record.keyed is not None:
            self.idempotency, self.replayed, self.answered_by = record.keyed, record.replayed, record.answered_by
        if record.queued_s:
            self.queue_ms = _ms(record.queued_s)
        if record.first_byte:
            self.first_byte_ms = _ms(record.first_byte - record.began)
            if record.stream:
                self.stream_ms = _ms(record.ended - record.first_byte)
        if (phases := phases_of(record)) is not None:
            self.limits_ms, self.route_ms = _ms(phases.limits), _ms(phases.route)
            self.engine_ms, self.overhead_ms = _ms(engine_s(record)), _ms(phases.total)
            self.events, self.taken_over = record.events, record.taken_over
        if (usage := record.usage) is not None:
            self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens
            self.cached_tokens = usage.cached_tokens


class RequestLog:
    """Requests and events as lines: JSON for machines, words for people."""

    def __init__(self, writer: LogWriter, *, words: Words | None, unlogged: Collection[str] = ()) -> None:
        """Without `words`, JSON. `unlogged`: endpoints that machines ask every few seconds, whose lines would bury the
        others."""
        self._write = writer.write
        self._words = words
        self._unlogged = unlogged

    def began(self, record: Record) -> None:
        """A request is logged once, when it has ended."""

    def ended(self, record: Record) -> None:
        if record.endpoint not in self._unlogged:
            self._write(self._words.request(record) if self._words is not None else _json(RequestLine.of(record)))

    def note(self, event: Event) -> None:
        if self._words is not None:
            self._write(self._words.event(event))
        else:
            self._write(_json({"event": type(event).__name__, "ts": datetime.now(UTC), **asdict(event)}))


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def _json(facts: Any) -> str:
    """JSON leaves some characters as they are that move a terminal's cursor, or look like a new line."""
    text = _encode(facts).decode()
    return text if text.isprintable() else json.dumps(json.loads(text))
