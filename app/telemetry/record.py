"""What is known about one request: one wide event, filled on the way through and told once at the end."""

from enum import StrEnum

import msgspec

from app.errors import Outcome
from app.generation import Usage
from app.telemetry.story import Options, Story
from app.tenant import Priority
from app.trace import Trace


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


class Attempt(msgspec.Struct, gc=False, array_like=True):
    """One replica's part in a request.

    Here and in `Record`, no cycle can be: the collector need not look through the thousands that a journal keeps.
    """

    replica: str
    began: float
    trace: Trace | None = None
    """Its span, which the engine's own is part of."""
    ended: float = 0.0
    error: str = ""
    """The class of its error."""
    beside: bool = False
    """Begun while another one was slow to begin."""
    outrun: bool = False
    """Another one, tried beside it, began first; this one was ended."""
    address: tuple[str, int] | None = None
    """Where its engine is reached, if that is somewhere."""
    sought: float = 0.0
    """Since when a replica was looked for, waiting included."""
    reason: Reason | None = None
    among: int = 0
    """So many could have been chosen."""
    options: Options | None = None
    """How they stood, and the others, where a journal is kept."""


class Keyed(StrEnum):
    """What became of a request with an idempotency key: one vocabulary for log and metric."""

    FIRST = "first"
    """The answer was made for it."""
    REPLAYED = "replayed"
    """It got the answer that is kept."""
    ATTACHED = "attached"
    """It read along with one that was being answered."""
    RESUMED = "resumed"
    """It got the rest of a stream whose beginning its client has."""
    IN_FLIGHT = "in_flight"
    MISMATCH = "mismatch"
    """The key stands for another request."""
    NOT_REPLAYABLE = "not_replayable"
    STORE_DOWN = "store_down"


class Record(msgspec.Struct, gc=False, array_like=True):
    id: str
    endpoint: str
    """The route's own path, never the client's spelling: it becomes a label."""
    method: str
    began: float
    trace: Trace | None = None
    """Its span, where traces are made."""
    story: Story | None = None
    """What else is kept of a call, where a journal is."""
    tenant: str = ""
    model: str = ""
    stream: bool = False
    choices: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    status: int = 0
    outcome: Outcome = Outcome.OK
    error: str = ""
    """The class of the error, and for an engine's its `detail`; never shown to the client."""
    detail: str = ""
    code: str = ""
    """The error's, as its answer says it."""
    replica: str = ""
    routed_by: Reason | None = None
    """`None` while there was no choice to be made: it is waiting, was refused, or is answered by an earlier one."""
    attempts: int = 0
    taken_over: int = 0
    """How often another replica went on with its stream."""
    tries: tuple[Attempt, ...] = ()
    """The attempts, one by one."""
    queued_s: float = 0.0
    """How long it waited for its turn."""
    waits: tuple[tuple[float, float], ...] = ()
    """From when until when, each time that it did."""
    replayed: bool = False
    """The answer was made for an earlier request with the same idempotency key."""
    keyed: Keyed | None = None
    """With a key, once that is known."""
    made: "Record | None" = None
    """The record of its run, where the answer is made apart from its client, and may outlive it."""
    answered_by: str = ""
    """The request that the answer was made for, if that is another one."""
    priority: Priority | None = None
    received: float = 0.0
    """When its body was there; with this and the next ones its own time is told from waiting (0: it did not come to
    that)."""
    parsed: float = 0.0
    """When it was known what is asked."""
    allowed: float = 0.0
    """When its tenant's limits had let it in."""
    admitted: float = 0.0
    """When it was given its first replica."""
    sought: float = 0.0
    """When the next one began to be looked for, after an attempt that failed."""
    first_byte: float = 0.0
    ended: float = 0.0
    events: int = 0
    """How many came from the engine, of a stream."""
    usage: Usage | None = None
    guessed: bool = False
    """No engine told the usage."""
