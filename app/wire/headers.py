"""What single headers may say: their grammar, checked once, on the way in."""

import re
from collections.abc import Mapping

from app.errors import InvalidRequest
from app.trace import Trace

_KEY = re.compile(rb'(?P<quote>"?)(?P<key>[A-Za-z0-9_.:-]{1,255})(?P=quote)')
_SESSION = re.compile(rb"[A-Za-z0-9_.:-]{1,255}")
_EVENT = re.compile(rb"[0-9]{1,9}")
_TRACEPARENT = re.compile(rb"00-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})")
_TRACESTATE = re.compile(rb"[\x20-\x7e]{1,512}")
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16


def idempotency_key(raw: bytes) -> str:
    """Bare, or quoted as the IETF's draft has it; both are the same key."""
    found = _KEY.fullmatch(raw)
    if found is None:
        text = "Give one key of 1 to 255 letters, digits and '_', '.', ':', '-'."
        raise InvalidRequest(text, param="Idempotency-Key", code="invalid_idempotency_key")
    return found["key"].decode()


def last_event_id(raw: bytes) -> int:
    """How many events the client has: ours are numbered from 1."""
    if _EVENT.fullmatch(raw) is None:
        raise InvalidRequest("Give the 'id' of an event of this stream.", param="Last-Event-ID", code="invalid_header")
    return int(raw)


def session_id(raw: bytes) -> str:
    if _SESSION.fullmatch(raw) is None:
        text = "Give one id of 1 to 255 letters, digits and '_', '.', ':', '-'."
        raise InvalidRequest(text, param="X-Session-Id", code="invalid_header")
    return raw.decode()


def trace_context(headers: Mapping[bytes, bytes]) -> Trace | None:
    """The caller's place in its trace. What is not well-formed is as if it were not there, as W3C wants it."""
    given = headers.get(b"traceparent")
    found = None if given is None else _TRACEPARENT.fullmatch(given)
    if found is None or found["trace"] == _NO_TRACE or found["span"] == _NO_SPAN:
        return None
    state = headers.get(b"tracestate", b"")
    return Trace(
        found["trace"].decode(),
        found["span"].decode(),
        int(found["flags"], 16),
        state=state.decode() if _TRACESTATE.fullmatch(state) else "",
    )
