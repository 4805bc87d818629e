"""What is known about one request: one wide event, filled on the way through and told once at the end."""

import msgspec

from app.errors import Outcome
from app.generation import Usage
from app.trace import Trace


class Attempt(msgspec.Struct):
    """One replica's part in a request."""

    replica: str
    began: float
    trace: Trace | None = None
    """Its span, which the engine's own is part of."""
    ended: float = 0.0
    error: str = ""
    """The class of its error."""
    outrun: bool = False
    """Another one, tried beside it, began first; this one was ended."""


class Record(msgspec.Struct):
    id: str
    endpoint: str
    """The route's own path, never the client's spelling: it becomes a label."""
    method: str
    began: float
    trace: Trace | None = None
    """Its span, where traces are made."""
    tenant: str = ""
    model: str = ""
    stream: bool = False
    status: int = 0
    outcome: Outcome = Outcome.OK
    error: str = ""
    """The class of the error, and for an engine's its `detail`; never shown to the client."""
    detail: str = ""
    replica: str = ""
    attempts: int = 0
    tries: tuple[Attempt, ...] = ()
    """The attempts, one by one."""
    queued_s: float = 0.0
    """How long it waited for its turn."""
    waits: tuple[tuple[float, float], ...] = ()
    """From when until when, each time that it did."""
    replayed: bool = False
    """The answer was made for an earlier request with the same idempotency key."""
    first_byte: float = 0.0
    ended: float = 0.0
    events: int = 0
    """How many came from the engine, of a stream."""
    usage: Usage | None = None
    guessed: bool = False
    """No engine told the usage."""
