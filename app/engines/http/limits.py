"""How long an engine may take, and how much it may send."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds per phase. The total comes with each call, as the time when it expires."""

    connect_s: float
    first_byte_s: float
    """From the request to the first byte of the answer's body."""
    idle_s: float
    """Between reads after that. A slow reader of ours is never taken for an idle engine."""
    whole_s: float | None = None
    """`first_byte_s` for an answer that is not streamed: its first byte comes only when all of it is made."""


@dataclass(frozen=True, slots=True)
class Limits:
    max_header_bytes: int = 64 * 1024
    """Received in a row without a byte of body: a head, trailers, chunk extensions. Exact to one read."""
    max_event_bytes: int = 4 * 1024 * 1024
    max_answer_bytes: int = 64 * 1024 * 1024
    """For an answer that is not streamed."""
    buffer_bytes: int = 256 * 1024
    """A stream is not read any further while this much of it waits for its reader."""
    idle_keepalive_s: float = 4.0
    """Below the 5 s after which servers built on uvicorn close an idle connection."""
    max_idle: int = 256
