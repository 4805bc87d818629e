"""What came of a world: what every client saw, what the gateway recorded, what the engines did."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

from app.engines.scripted import Work
from app.telemetry.base import Event
from app.telemetry.record import Record
from app.wire.sse import data_of, split
from tests.simulation.link import Exchange
from tests.simulation.world import StoreFault, Visit, World


@dataclass
class Seen:
    """What one client saw of its request, and when."""

    visit: Visit
    sent: float = 0.0
    body_sent: float | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    answered: float | None = None
    blocks: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float | None = None
    """The gateway said that there is no more."""
    out_of_turn: list[str] = field(default_factory=list)
    """Messages that may not come when they came."""
    hung_up: float | None = None
    cut_off: float | None = None
    """The gateway closed the connection."""
    killed: float | None = None
    blocked_s: float = 0.0
    """For how long it let the gateway wait, in all,"""
    longest_block_s: float = 0.0
    """and for one message."""
    returned: float | None = None
    """The gateway is done with it."""
    raised: str = ""

    def note(self, message: dict[str, Any], now: float) -> None:
        if self.ended is not None or (message["type"] == "http.response.start") is (self.answered is not None):
            self.out_of_turn.append(message["type"])
            return
        if message["type"] == "http.response.start":
            self.answered, self.status = now, message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        if message.get("body"):
            self.blocks.append((now, message["body"]))
        if not message.get("more_body", False):
            self.ended = now

    @property
    def left(self) -> float | None:
        """When it was gone before its answer was whole, whoever's doing it was."""
        moments = [at for at in (self.hung_up, self.cut_off, self.killed) if at is not None]
        return min(moments, default=None) if self.ended is None else None

    @property
    def body(self) -> bytes:
        return b"".join(block for _, block in self.blocks)

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def events(self) -> list[Any]:
        """What each event of its stream carries; what is no JSON, like `[DONE]`, as itself."""
        return _events(self.body)

    @property
    def is_done(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")

    @property
    def error(self) -> dict[str, Any] | None:
        """What it was told went wrong: as an answer, or as the last event."""
        if self.is_stream:
            last = self.events[-1] if self.blocks else None
        else:
            last = json.loads(self.body) if self.ended is not None and self.blocks else None
        return last["error"] if isinstance(last, dict) and "error" in last else None

    def read_by(self, now: float, *, before: bool = False) -> str:
        """The text of its stream as far as it had come then; without what came in that very moment."""
        blocks = [block for at, block in self.blocks if at < now or (at == now and not before)]
        return _text_of(_events(b"".join(blocks)))

    @property
    def text(self) -> str:
        if not self.is_stream:
            choices = json.loads(self.body).get("choices", []) if self.status == 200 and self.ended is not None else []
            return "".join(choice["message"]["content"] for choice in choices)
        return _text_of(self.events)


def _text_of(events: list[Any]) -> str:
    chunks = [event for event in events if isinstance(event, dict) and event.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@lru_cache(maxsize=1_024)
def _events(body: bytes) -> list[Any]:
    """Asked for by many invariants."""
    return [_read(data_of(event)) for event in split(body)]


def _read(event: bytes) -> Any:
    try:
        return json.loads(event)
    except ValueError:
        return event.decode(errors="replace")


@dataclass
class Peaks:
    """The most that was ever seen at once."""

    running: dict[str, int] = field(default_factory=dict)
    """By replica, as the gateway counts."""
    waiting: dict[str, int] = field(default_factory=dict)
    """By model: those in the line that have not been served yet, and"""
    tokens: dict[str, int] = field(default_factory=dict)
    """their prompts, while there is more than one of them."""
    idle_s: dict[str, float] = field(default_factory=dict)
    """By model: for how long somebody waited while a replica had room."""
    _idle_since: dict[str, float] = field(default_factory=dict)

    def runs(self, name: str, running: int) -> None:
        if running > self.running.get(name, 0):
            self.running[name] = running

    def waits(self, model: str, waiting: int, tokens: int) -> None:
        if waiting > self.waiting.get(model, 0):
            self.waiting[model] = waiting
        if waiting > 1 and tokens > self.tokens.get(model, 0):
            self.tokens[model] = tokens

    def idles(self, model: str, now: float, idle: bool) -> None:
        if not idle:
            self._idle_since.pop(model, None)
            return
        since = self._idle_since.setdefault(model, now)
        self.idle_s[model] = max(self.idle_s.get(model, 0.0), now - since)


@dataclass
class Counted:
    """What one gateway told of usage when all was over: requests, prompt tokens and completion tokens."""

    own: tuple[int, int, int] = (0, 0, 0)
    """In its own file."""
    told: tuple[int, int, int] = (0, 0, 0)
    """To whoever asks it."""
    of_all: bool = False
    """It says that this is what all gateways counted."""


@dataclass
class Left:
    """What is still held when all is over; empty, if all was given back."""

    held: dict[str, int] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    """In Redis: the requests that have a part of a limit, and"""
    claims: list[str] = field(default_factory=list)
    """the runs that have an idempotency key."""


@dataclass
class History:
    world: World
    seen: list[Seen]
    afterwards: list[Seen] = field(default_factory=list)
    """The same, for those who came when every engine was well again."""
    begun: list[str] = field(default_factory=list)
    """The requests of which telemetry was told that they began."""
    records: list[Record] = field(default_factory=list)
    events: list[tuple[float, int, Event]] = field(default_factory=list)
    """What each gateway told beside its requests."""
    works: dict[str, list[Work]] = field(default_factory=dict)
    """By engine."""
    peaks: Peaks = field(default_factory=Peaks)
    exchanges: list[Exchange] = field(default_factory=list)
    """With Redis."""
    counted: list[Counted] = field(default_factory=list)
    """By gateway."""
    left: Left = field(default_factory=Left)
    stuck: str = ""
    """Who still waited when nothing could happen any more, or when the time was over."""
    logged: list[str] = field(default_factory=list)
    """What the gateway thought worth an error in its log."""
    ended: float = 0.0
    turns: int = 0

    @property
    def all_seen(self) -> list[Seen]:
        return [*self.seen, *self.afterwards]

    def works_by_request(self) -> dict[str, list[tuple[str, Work]]]:
        """What was done for each, in the order in which it began, with the names of the engines."""
        by_request: dict[str, list[tuple[str, Work]]] = {seen.visit.id: [] for seen in self.all_seen}
        everything = [(name, work) for name, works in self.works.items() for work in works]
        for name, work in sorted(everything, key=_in_order):
            by_request[work.call.id].append((name, work))
        return by_request

    def works_by_answer(self) -> dict[str, list[tuple[str, Work]]]:
        """For each request what was done for it, or for another one with its key and its body."""
        by_request = self.works_by_request()
        by_answer: dict[str, list[tuple[str, Work]]] = {}
        for family in self.families():
            works = [work for seen in family for work in by_request[seen.visit.id]]
            by_answer |= {seen.visit.id: sorted(works, key=_in_order) for seen in family}
        return by_answer

    def families(self) -> list[list[Seen]]:
        """Requests that are to have one answer, each in its order of coming. Most are alone."""
        families: dict[object, list[Seen]] = {}
        for seen in self.all_seen:
            visit = seen.visit
            same = (visit.tenant, visit.idempotency_key, visit.body()) if visit.idempotency_key else visit.id
            families.setdefault(same, []).append(seen)
        return list(families.values())

    def lines(self) -> list[str]:
        """All that happened, in its order, for a reader."""
        return [f"{at:10.4f}  {what}" for at, what in sorted(self._happened(), key=lambda each: each[0])]

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()

    def _happened(self) -> Iterator[tuple[float, str]]:
        for fault in self.world.faults:
            yield fault.at, f"{fault.engine}: {fault.trouble} for {fault.until - fault.at:g} s, share {fault.share}"
            yield fault.until, f"{fault.engine}: no longer {fault.trouble}"
        for trouble in self.world.store_faults:
            yield trouble.at, f"store: {_of_store(trouble)}"
            yield trouble.until, f"store: no longer {trouble.trouble}"
        for exchange in self.exchanges:
            yield exchange.began, f"gateway-{exchange.gateway}: asks the store: {exchange}"
        for seen in self.all_seen:
            yield from _of_client(seen)
        for name, works in self.works.items():
            for work in works:
                yield work.began, f"{name}: is asked for {work.call.id}"
                yield work.ended or self.ended, f"{name}: {work.end} {work.call.id} after {len(work.made)} tokens"
        for record in self.records:
            yield record.ended, f"gateway: {record.id} is {record.outcome}, {_told(record)}"
        for at, gateway, event in self.events:
            yield at, f"gateway-{gateway}: {event}"
        for line in self.logged:
            yield self.ended, f"log: {line}"
        yield self.ended, f"the end, {self.turns} turns, {self.peaks}, {self.left}, {self.counted} {self.stuck}"


def _of_store(fault: StoreFault) -> str:
    whom = "all" if fault.gateway is None else f"gateway-{fault.gateway}"
    empty = ", and comes back empty" if fault.empties else ""
    return f"{fault.trouble} to {whom} for {fault.until - fault.at:g} s, share {fault.share}{empty}"


def _in_order(each: tuple[str, Work]) -> tuple[float, float]:
    """Of two that began at once, that which ended at once was first."""
    return each[1].began, each[1].ended or 0.0


def _told(record: Record) -> str:
    """What is known of it beyond the usual."""
    known = {name: getattr(record, name) for name in ("status", "error", "replica", "attempts", "queued_s", "usage")}
    return ", ".join(f"{name}={value}" for name, value in known.items() if value)


def _of_client(seen: Seen) -> Iterator[tuple[float, str]]:
    name = seen.visit.id
    yield seen.sent, f"client: {name} comes: {_asks(seen.visit)}"
    for at, what in (
        (seen.body_sent, "has sent its body"),
        (seen.hung_up, "hangs up"),
        (seen.cut_off, "is cut off"),
        (seen.killed, "is killed"),
        (seen.answered, f"gets {seen.status}"),
        (seen.ended, f"has its whole answer of {len(seen.body)} bytes, {_of_chars(seen.text, 60)}"),
    ):
        if at is not None:
            yield at, f"client: {name} {what}"
    for at, block in seen.blocks:
        yield at, f"client: {name} reads {_short(block)}"


def _asks(visit: Visit) -> str:
    usual = Visit(visit.id, visit.at, visit.model, visit.stream, visit.tokens)
    unusual = [f.name for f in fields(visit) if getattr(visit, f.name) != getattr(usual, f.name)]
    kind = "stream" if visit.stream else "whole"
    return f"{kind} of {visit.tokens} from {visit.model} " + " ".join(f"{n}={getattr(visit, n)}" for n in unusual)


def _short(block: bytes) -> str:
    """Enough to tell it from others."""
    events = [data_of(event) for event in split(block)]
    contents = [event[event.find(b'"content":') :] if b'"content":' in event else event for event in events]
    return ", ".join(_of_chars(content.decode(), 60) for content in contents)


def _of_chars(text: str, most: int) -> str:
    return repr(text if len(text) <= most else f"{text[:most]}… ({len(text)})")
