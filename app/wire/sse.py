"""Server-sent events as bytes: writing one, and cutting a byte stream into blocks of whole ones."""

import re
from itertools import pairwise
from typing import Any

import msgspec

from app.errors import EngineNonsense

DONE = b"data: [DONE]\n\n"

_BLANK_LINES = re.compile(rb"\n(?:\r?\n)+")

_encode = msgspec.json.Encoder().encode


def event(payload: Any) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"


def data_of(one: bytes) -> bytes:
    """What an event carries. Only `data:` lines count; more than one are joined by newlines, as the standard says."""
    if one.startswith(b"data: ") and one.find(b"\n") == len(one) - 2 and one.find(b"\r") < 0:  # as nearly all are
        return one[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in one.splitlines() if line.startswith(b"data:")]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def split(block: bytes) -> list[bytes]:
    """The single events of a block of whole ones, each with its blank line."""
    if block.endswith(b"\n\n") and block.find(b"\n\n\n") < 0 and block.find(b"\r") < 0:  # as nearly all are
        return [one + b"\n\n" for one in block[:-2].split(b"\n\n")]
    ends = [border.end() for border in _BLANK_LINES.finditer(block)]
    return [block[start:end] for start, end in pairwise((0, *ends, len(block))) if start < end]


def numbered(block: bytes, count: int) -> list[bytes]:
    """The single events of a block of whole ones, each with its number as `id`. `count` came before them."""
    return [b"id: %d\n%b" % (number, one) for number, one in enumerate(split(block), count + 1)]


class EventCutter:
    """Takes bytes as they arrive and gives them back in blocks of whole events, copying only at torn borders."""

    __slots__ = ("_max", "_torn")

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._torn = bytearray()

    def feed(self, data: bytes) -> bytes:
        """All events that are whole now, possibly none (`b""`)."""
        torn = self._torn
        if not torn and data.endswith(b"\n\n"):
            return data
        seam = max(len(torn) - 2, 0)  # what was searched already is not searched again
        torn += data
        end = max(_after(torn, b"\n\n", seam), _after(torn, b"\n\r\n", seam))
        block = bytes(torn[:end])
        del torn[:end]
        if len(torn) > self._max:
            raise EngineNonsense("The engine sent an event larger than the gateway accepts.")
        return block

    def rest(self) -> bytes:
        """What is left when the stream has ended: an event that never got its blank line."""
        return bytes(self._torn)


def _after(data: bytearray, border: bytes, start: int) -> int:
    at = data.rfind(border, start)
    return 0 if at < 0 else at + len(border)
