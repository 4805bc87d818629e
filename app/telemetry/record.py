"""What is known about one request: one wide event, filled on the way through and told once at the end."""

from enum import StrEnum

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


class Reason(StrEnum):
    """Why it was this replica: one vocabulary for header, log and metric."""

    ONLY = "only"
    """No other had room."""
    TURN = "turn"
    LOAD = "load"
    """It had less to do."""
    SESSION = "session"
    """The call's session lives there."""
    SESSION_AWAY = "session_away"
    """Its session lives on one that has too much to do; this is the next in the session's order."""
    PREFIX = "prefix"
    """It has read the beginning of this prompt lately."""
    PREFIX_AWAY = "prefix_away"
    """Those that have read it have too much to do; this one had less."""


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
    routed_by: Reason | None = None
    """`None` while there was no choice to be made: it is waiting, was refused, or is answered by an earlier one."""
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
