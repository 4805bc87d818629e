"""A place in a trace, as W3C's trace context tells it from one process to the next."""

import random

import msgspec

SAMPLED = 1


class Trace(msgspec.Struct, frozen=True, array_like=True):
    """One span: which trace it is in, which one it is, and whether anybody keeps it."""

    trace_id: str
    span_id: str
    flags: int = SAMPLED
    parent_id: str = ""
    """The span that this one is part of; the first of a trace has none."""
    state: str = ""
    """What other tracing systems have written along (`tracestate`): theirs, and passed on as it came."""

    @property
    def sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def child(self) -> "Trace":
        return Trace(self.trace_id, new_span_id(), self.flags, self.span_id, self.state)


def new_ids() -> tuple[str, str]:
    """Of a trace and of its first span."""
    both = f"{random.getrandbits(192):048x}"
    return both[:32], both[32:]


def new_span_id() -> str:
    return f"{random.getrandbits(64):016x}"
