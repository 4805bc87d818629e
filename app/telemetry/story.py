"""What is kept of a call beside its record, for whoever asks why: facts as they were when something was decided.

Filled on the way through where a journal wants it. Never a prompt, an answer or a key; nothing is put into words here.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import msgspec

from app.errors import GatewayError, RateLimited
from app.generation import Call, Expected
from app.tenant import Standing

MOST_CANDIDATES = 8
"""Looked at in one choice. Each costs a twentieth of a microsecond, on every call's way."""


class Candidate(NamedTuple):
    """A replica as it was when one was chosen. Kept as a plain tuple: it is made for each of them on every choice."""

    replica: str
    running: int
    slots: int
    reserved: int
    """Slots that only interactive calls may take."""
    load: int
    """Tokens of work that our calls are expected to be on it."""
    beside: int
    """Tokens of work that others give it, as far as can be told."""
    circuit: str


Seen = tuple[str, int, int, int, int, int, str]
Options = tuple[Sequence[Seen], int, tuple[tuple[str, str], ...]]
"""What there was to choose from: candidates, the chosen one always among them; of how many that were ready; and those
that were not, by name and in which state."""


class Stood(msgspec.Struct, gc=False, array_like=True):
    """One stay in the line. What is predicted is of the moment when it came."""

    since: float
    ahead: int
    """How many would have their turn before it, as far as that can be known."""
    waiting: int
    """In the whole line."""
    wait_s: float
    """That it would wait, probably."""
    needs_s: float
    """Until it would be done, with caution; if it has less left it is refused."""
    left_s: float
    until: float = 0.0
    """0: it waits still, or was not let in."""
    tenants: int = 0
    """When its turn came: so many tenants had somebody waiting in its class, its own included."""
    promoted: bool = False
    """As batch it had waited long enough to count as normal."""
    again: bool = False
    """After an attempt that failed: ahead of those who have not been served at all."""
    displaced_by: str = ""
    """The request that got its place."""


class Refusal(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What its client was told."""

    message: str
    param: str | None
    retry_after_s: float | None
    should_retry: bool | None
    limits: tuple[Standing, ...]

    @classmethod
    def of(cls, error: GatewayError) -> "Refusal":
        limits = error.standing if isinstance(error, RateLimited) else ()
        return cls(error.message, error.param, error.retry_after, error.should_retry, limits)


class NotRetried(StrEnum):
    """Why a failed attempt was the last one."""

    BEGUN = "begun"
    """Its client had some of the answer."""
    USELESS = "useless"
    """It would fail elsewhere too."""
    ATTEMPTS = "attempts"
    """There had been as many as there may be."""
    NO_OTHER = "no_other"
    """No other replica could be asked."""
    BUDGET_OR_TIME = "budget_or_time"
    """The budget for retries was spent, or the call's time."""


class Asked(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is told of a call; not what it says."""

    expires_at: float
    keyed: bool
    """It came with an idempotency key."""
    session: bool
    body_bytes: int

    @classmethod
    def of(cls, call: Call) -> "Asked":
        return cls(call.expires_at, call.key is not None, call.session != "", len(call.body))


class Story(msgspec.Struct, gc=False, array_like=True):
    asked: Asked | None = None
    """`None`: it did not come to a call."""
    expected: Expected | None = None
    limits: tuple[Standing, ...] | None = None
    """How its tenant's limits stood, this call counted; `None` while they had not let it in."""
    stood: tuple[Stood, ...] = ()
    refusal: Refusal | None = None
    not_retried: NotRetried | None = None
