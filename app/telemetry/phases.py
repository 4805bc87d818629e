"""Where a call's time went, by its record: one arithmetic for metrics, log lines and the journal."""

import msgspec

from app.telemetry.record import Record


class Phases(msgspec.Struct, frozen=True, gc=False):
    """Our own time, in seconds. With waiting and the engine's it makes up the whole, but for what goes on at once: the
    relay of a stream, of which `gllm_event_delay_seconds` tells."""

    intake: float
    """From the body's last byte until it was known what is asked."""
    limits: float
    """Until its tenant's limits had let it in."""
    route: float
    """Until its first attempt, without waiting."""
    relay: float | None
    """From a whole answer's first byte to its last; `None` where there was none, and for streams."""
    total: float


def phases_of(record: Record) -> Phases | None:
    """`None` for what did not come to an attempt."""
    if not record.tries:
        return None
    first = record.tries[0].began
    waited = sum([until - since for since, until in record.waits if until <= first]) if record.waits else 0.0
    intake = record.parsed - record.received
    limits = record.allowed - record.parsed
    route = first - record.allowed - waited
    relay = record.ended - record.first_byte if record.first_byte and not record.stream else None
    return Phases(intake, limits, route, relay, intake + limits + route + (relay or 0.0))


def engine_s(record: Record) -> float:
    """How long engines worked for it, streaming included. Two at once count once."""
    if len(record.tries) == 1:
        return (record.tries[0].ended or record.ended) - record.tries[0].began
    total = until = 0.0
    for attempt in record.tries:
        ended = attempt.ended or record.ended
        total += max(0.0, ended - max(attempt.began, until))
        until = max(until, ended)
    return total


def between_s(record: Record) -> float:
    """How long it had no engine and was in no line, from its first attempt to its last."""
    first, last = record.tries[0].began, record.tries[-1].began
    waited = sum(until - since for since, until in record.waits if first < since < last)
    before = msgspec.structs.replace(record, tries=record.tries[:-1], ended=last)
    return max(0.0, last - first - waited - min(last - first, engine_s(before)))
