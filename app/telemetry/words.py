"""Requests and events in words, for who watches a terminal: what is alike stands in one column, and what went wrong
has a colour where there are colours.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import IO, Any, Literal

from app.errors import Outcome
from app.generation import Route
from app.telemetry.base import Event
from app.telemetry.record import Record
from app.tenant import ANONYMOUS, Priority

Class = Literal["interactive", "normal", "batch"]
PRIORITIES: dict[Priority, Class] = {
    Priority.INTERACTIVE: "interactive",
    Priority.NORMAL: "normal",
    Priority.BATCH: "batch",
}

GREEN, YELLOW, RED, DIM = 32, 33, 31, 2
_COLOURS = {
    Outcome.OK: GREEN,
    Outcome.CLIENT_ERROR: YELLOW,
    Outcome.RATE_LIMITED: YELLOW,
    Outcome.CLIENT_GONE: YELLOW,
}
"""All others are red: our doing, or an engine's."""

_NAMES: dict[str, str] = {
    Route.CHAT: "chat",
    Route.COMPLETIONS: "completion",
    Route.EMBEDDINGS: "embeddings",
    Route.RESPONSES: "responses",
    Route.MESSAGES: "messages",
    Route.TOKENIZE: "tokenize",
    Route.DETOKENIZE: "detokenize",
}
_QUOTED = re.compile(r"[\s\"'\\]")
_INNER_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def coloured(stream: IO[str], env: Mapping[str, str]) -> bool:
    """https://no-color.org"""
    return stream.isatty() and not env.get("NO_COLOR") and env.get("TERM") != "dumb"


class Words:
    def __init__(self, *, coloured: bool) -> None:
        self._coloured = coloured

    def request(self, record: Record) -> str:
        outcome = self._in(_COLOURS.get(record.outcome, RED), f"{record.status:>3} {record.outcome:<15}")
        took = lasting(record.ended - record.began)
        said = "  ".join(each for each in _said(record) if each)
        return f"{self._now()}  {outcome} {took:>8}  {said}  {self._in(DIM, record.id)}"

    def event(self, event: Event) -> str:
        """`ReplicaChanged` is a replica that changed."""
        name = _INNER_CAPITAL.sub(" ", type(event).__name__).lower()
        facts = " ".join(f"{name}={word(value)}" for name, value in asdict(event).items() if value not in ("", None))
        return f"{self._now()}  {name}: {facts}"

    def _now(self) -> str:
        return self._in(DIM, f"{datetime.now():%H:%M:%S}")

    def _in(self, colour: int, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured else text


def _said(record: Record) -> Iterator[str]:
    yield f"{_asked(record):<17}"
    yield word(record.model) if record.model else ""
    yield word(record.tenant) if record.tenant not in ("", ANONYMOUS.name) else ""
    if (usage := record.usage) is not None:
        yield f"{usage.prompt_tokens}+{usage.completion_tokens} tokens"
    if record.queued_s:
        yield f"queued {lasting(record.queued_s)}"
    if record.stream and record.first_byte:
        yield f"first {lasting(record.first_byte - record.began)}"
    if record.replica:
        yield f"{word(record.replica)} ({', '.join(_why(record))})" if any(_why(record)) else word(record.replica)
    if record.keyed is not None:
        yield record.keyed
    if record.code and record.code != record.outcome:
        yield word(record.code)
    if record.detail:
        yield word(record.detail)


def _asked(record: Record) -> str:
    if record.endpoint not in _NAMES or record.method != "POST":
        return f"{word(record.method)} {word(record.endpoint)}"
    return kind(record.endpoint, stream=record.stream)


def kind(endpoint: str, *, stream: bool) -> str:
    """Of calls that engines answer, in a word or two."""
    name = _NAMES.get(endpoint, endpoint)
    return f"{name} stream" if stream else name


def _why(record: Record) -> Iterator[str]:
    if record.routed_by is not None:
        yield record.routed_by
    if record.attempts > 1:
        yield f"attempt {record.attempts}"


def lasting(seconds: float) -> str:
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 100 else f"{seconds:.0f} s"


def word(value: Any) -> str:
    """One word, or quoted: a line stays one line, whatever a client put into it."""
    text = str(value)
    return text if text and text.isprintable() and not _QUOTED.search(text) else json.dumps(text)
