"""What single headers may say: their grammar, checked once, on the way in."""

import re

from app.errors import InvalidRequest

_KEY = re.compile(rb'(?P<quote>"?)(?P<key>[A-Za-z0-9_.:-]{1,255})(?P=quote)')
_SESSION = re.compile(rb"[A-Za-z0-9_.:-]{1,255}")
_EVENT = re.compile(rb"[0-9]{1,9}")


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
