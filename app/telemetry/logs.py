"""One line a request and one an event, written by a thread of its own so that a slow terminal slows no request."""

import sys
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import IO, Any

import msgspec

from app.telemetry.base import Event
from app.telemetry.record import Record

_encode = msgspec.json.Encoder().encode


class LogWriter:
    """Takes lines from any thread and writes them in batches. Closing writes what is left."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self.write = self._lines.put
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            batch = [line]
            while not self._lines.empty() and len(batch) < 1_000:
                following = self._lines.get()
                if following is None:
                    self._lines.put(None)
                    break
                batch.append(following)
            self._stream.write("\n".join(batch) + "\n")
            self._stream.flush()

    def close(self) -> None:
        self._lines.put(None)
        self._thread.join(timeout=2)


class RequestLog:
    """Requests and events as lines: JSON for machines, a sentence for a terminal. Never a prompt, never a key."""

    def __init__(self, writer: LogWriter, *, as_json: bool) -> None:
        self._write = writer.write
        self._show = _json_line if as_json else _text_line

    def began(self, record: Record) -> None:
        """A request is logged once, when it has ended."""

    def ended(self, record: Record) -> None:
        self._write(self._show(_facts(record)))

    def note(self, event: Event) -> None:
        self._write(self._show({"event": type(event).__name__, **asdict(event)}))


def _facts(record: Record) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "event": "request",
        "request_id": record.id,
        "method": record.method,
        "endpoint": record.endpoint,
        "model": record.model,
        "stream": record.stream,
        "status": record.status,
        "outcome": record.outcome.value,
        "duration_ms": round((record.ended - record.began) * 1e3, 2),
    }
    if record.first_byte:
        facts["first_byte_ms"] = round((record.first_byte - record.began) * 1e3, 2)
        facts["replica"] = record.replica
        facts["attempts"] = record.attempts
    if record.usage is not None:
        facts["prompt_tokens"] = record.usage.prompt_tokens
        facts["completion_tokens"] = record.usage.completion_tokens
    if record.error:
        facts["error"] = record.error
        facts["detail"] = record.detail
    return facts


def _json_line(facts: dict[str, Any]) -> str:
    return _encode({"ts": datetime.now(UTC).isoformat(timespec="milliseconds"), **facts}).decode()


def _text_line(facts: dict[str, Any]) -> str:
    shown = " ".join(f"{name}={_plain(value)}" for name, value in facts.items() if name != "event" and value != "")
    return f"{datetime.now(UTC):%H:%M:%S} {facts['event']} {shown}"


def _plain(value: Any) -> str:
    """One word, or quoted: a line stays one line, whatever a client put into it."""
    text = str(value)
    return text if text.isprintable() and " " not in text else _encode(text).decode()
