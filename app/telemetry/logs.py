"""One line a request and one an event, written by a thread of its own so that a slow terminal slows no request."""

import json
import re
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
from app.telemetry.record import Record

_encode = msgspec.json.Encoder().encode
_QUOTED = re.compile(r"[\s\"'\\]")

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
    tenant: str = ""
    model: str = ""
    stream: bool = False
    first_byte_ms: float = 0.0
    replica: str = ""
    routed_by: str = ""
    attempts: int = 0
    taken_over: int = 0
    replayed: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""
    detail: str = ""
    trace_id: str = ""
    span_id: str = ""

    @classmethod
    def of(cls, record: Record) -> "RequestLine":
        usage, trace = record.usage, record.trace
        return cls(
            datetime.now(UTC),
            record.id,
            record.method,
            record.endpoint,
            record.status,
            record.outcome.value,
            _ms(record.ended - record.began),
            record.tenant,
            record.model,
            record.stream,
            _ms(record.first_byte - record.began) if record.first_byte else 0.0,
            record.replica,
            record.routed_by or "",
            record.attempts,
            record.taken_over,
            record.replayed,
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
            record.error,
            record.detail,
            trace.trace_id if trace else "",
            trace.span_id if trace else "",
        )


class RequestLog:
    """Requests and events as lines: JSON for machines, words for a terminal."""

    def __init__(self, writer: LogWriter, *, as_json: bool, unlogged: Collection[str] = ()) -> None:
        """`unlogged`: endpoints that machines ask every few seconds, whose lines would bury the others."""
        self._write = writer.write
        self._as_json = as_json
        self._unlogged = unlogged

    def began(self, record: Record) -> None:
        """A request is logged once, when it has ended."""

    def ended(self, record: Record) -> None:
        if record.endpoint in self._unlogged:
            return
        line = RequestLine.of(record)
        self._write(_json(line) if self._as_json else _words(msgspec.to_builtins(line)))

    def note(self, event: Event) -> None:
        facts = {"event": type(event).__name__, "ts": datetime.now(UTC), **asdict(event)}
        self._write(_json(facts) if self._as_json else _words(msgspec.to_builtins(facts)))


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def _json(facts: Any) -> str:
    """JSON leaves some characters as they are that move a terminal's cursor, or look like a new line."""
    text = _encode(facts).decode()
    return text if text.isprintable() else json.dumps(json.loads(text))


def _words(facts: dict[str, Any]) -> str:
    shown = " ".join(f"{name}={_word(value)}" for name, value in facts.items() if name not in ("event", "ts"))
    return f"{facts['ts'][11:19]} {facts['event']} {shown}"


def _word(value: Any) -> str:
    """One word, or quoted: a line stays one line, whatever a client put into it."""
    text = str(value)
    return text if text.isprintable() and not _QUOTED.search(text) else json.dumps(text)
