"""Changing a field of a body without touching the rest of it."""

from typing import Any

import msgspec

_encode = msgspec.json.encode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def put_fields(body: bytes, **fields: Any) -> bytes:
    """`body`, a JSON object, with these fields. One that a client has written as null is set where it stands."""
    if any(b'"%b"' % name.encode() in body for name in fields):
        return set_fields(body, **fields)
    return add_fields(body, **fields)


def add_fields(body: bytes, **fields: Any) -> bytes:
    """`body`, a JSON object without these fields, with them at its end. The client's own bytes stay as they are."""
    end = body.rindex(b"}")
    comma = b"" if body[:end].rstrip().endswith(b"{") else b","
    return b"%b%b%b" % (body[:end], comma, _encode(fields)[1:])


def remove_field(body: bytes, name: str) -> bytes:
    """`body` without this field."""
    present = _fields(body)
    present.pop(name, None)
    return _encode(present)


def set_fields(body: bytes, **fields: Any) -> bytes:
    """`body` with these fields in place of its own, which are written anew only where they stand."""
    present: dict[str, Any] = dict(_fields(body))
    present.update(fields)
    return _encode(present)
