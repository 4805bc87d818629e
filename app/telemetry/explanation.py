"""What a journal tells of a call: the facts in order, as JSON. Putting them into sentences is for who shows them
(`gllm explain`). Times are milliseconds since it came.
"""

from datetime import datetime
from typing import Literal

import msgspec

from app.errors import Outcome
from app.telemetry.record import Keyed, Reason
from app.telemetry.story import NotRetried
from app.telemetry.words import Class
from app.tenant import Kind

State = Literal["waiting", "running", "ended"]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One call in a list."""

    id: str
    came: datetime
    state: State
    """`running`: not in a line, and not ended."""
    endpoint: str
    model: str
    tenant: str
    priority: Class | None
    """`null`: it did not come to that."""
    stream: bool
    status: int | None
    outcome: Outcome | None
    code: str
    """The error's, as its client was told."""
    duration_ms: float
    """As far as it has come."""
    queue_ms: float
    first_byte_ms: float | None
    replica: str
    attempts: int
    prompt_tokens: int | None
    completion_tokens: int | None


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    gateway: str
    """The first four digits of the ids that this one gives."""
    kept: int
    """So many ended ones are, at most; by all processes of a gateway together."""
    requests: list[Summary]
    silent: tuple[str, ...] = ()
    """Processes that did not answer: what they had is missing."""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds by phase; `null` for what it did not come to."""

    intake: float | None
    limits: float | None
    queue: float
    route: float | None
    engine: float | None
    """All attempts; of a stream, until its end."""
    between: float | None
    """Pauses between attempts, without waiting."""
    stream: float | None
    """From its first event to its last."""
    overhead: float | None
    """The gateway's own: without waiting and engines."""


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """What was expected of it, and what became of that."""

    prompt: int
    output: int
    let_in: bool
    """By its tenant's limits."""
    reserved: int
    """0 where there are none, or they did not let it in."""
    used: int | None
    """`null` while it runs."""
    given_back: int | None
    """Less than 0: so many more than reserved were taken."""


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """As it stood with this call counted, or when it refused it."""

    kind: Kind
    of_model: bool
    limit: int
    needed: int
    left: int
    whole_in_s: float
    allows_in_s: float | None
    """This limit refused: when it may allow the same call."""


class Stay(msgspec.Struct, frozen=True, kw_only=True):
    """In the line."""

    came_ms: float
    waited_ms: float
    ahead: int
    waiting: int
    """In the whole line, when it came."""
    expected_ms: float
    """That it would wait, by what was known then."""
    needed_ms: float
    """Until it would be done, with caution."""
    left_ms: float
    """That it had, until its time limit."""
    again: bool
    """After an attempt that failed, and so ahead of those who had not been served at all."""
    tenants: int
    """When its turn came, so many had somebody waiting in its class; 0: it did not come, or tenants do not matter."""
    promoted: bool
    displaced_by: str


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A replica when one was chosen."""

    replica: str
    running: int | None
    """`null` with all that follows: it was not ready."""
    slots: int | None
    tokens: int | None
    """Of work on it, others' included."""
    score: float | None
    """Tokens of work for each slot: less is better."""
    against: str
    """What spoke against it, in a word or two."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    replica: str
    began_ms: float
    took_ms: float
    running: bool
    reason: Reason | None
    beside: bool
    outrun: bool
    error: str
    free: int
    """So many replicas could be chosen,"""
    of: int
    """of so many that there are for this model."""
    candidates: list[Option]


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    guessed: bool
    """No engine told it."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    allowed_ms: float
    """Its time limit."""
    body_bytes: int
    max_tokens: int | None
    choices: int
    session: bool
    """It named one."""
    keyed: bool
    """It came with an idempotency key."""


class Explanation(Summary, frozen=True, kw_only=True):
    gateway: str
    method: str
    policy: str
    trace_id: str
    asked: Wish | None
    """`null`: it could not be understood."""
    place: int | None
    """In the line, now; 1 is next."""
    places: int | None
    idempotency: Keyed | None
    """What became of its key, if it had one."""
    answered_by: str
    spent: Spent
    tokens: Tokens | None
    limits: list[Limit]
    line: list[Stay]
    tried: list[Tried]
    not_retried: NotRetried | None
    taken_over: int
    """How often another replica went on with its stream."""
    events: int
    usage: Counted | None
    error: str
    message: str
    param: str
    retry_after_s: float | None
    should_retry: bool | None
