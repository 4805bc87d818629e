"""Server-sent events as bytes: writing one, and cutting a byte stream into blocks of whole ones."""

from typing import Any

import msgspec

from app.errors import EngineNonsense

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def event(payload: Any) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"


def data_of(one: bytes) -> bytes:
    """What an event carries. Only `data:` lines count; more than one are joined by newlines, as the standard says."""
    lines = [line[5:].removeprefix(b" ") for line in one.splitlines() if line.startswith(b"data:")]
    return lines[0] if len(lines) == 1 else b"\n".join(lines)


def split(block: bytes) -> list[bytes]:
    """The single events of a block of whole ones, each with its blank line."""
    border = b"\r\n\r\n" if b"\r\n\r\n" in block else b"\n\n"
    return [one + border for one in block.split(border) if one]


class EventCutter:
    """Takes bytes as they arrive and gives them back in blocks of whole events, copying only at torn borders."""

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._torn = b""

    def feed(self, data: bytes) -> bytes:
        """All events that are whole now, possibly none (`b""`)."""
        if self._torn:
            data = self._torn + data
            self._torn = b""
        if data.endswith(b"\n\n"):
            return data
        end = max(_after(data, b"\n\n"), _after(data, b"\r\n\r\n"))
        if len(data) - end > self._max:
            raise EngineNonsense("The engine sent an event larger than the gateway accepts.")
        self._torn = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What is left when the stream has ended: an event that never got its blank line."""
        return self._torn


def _after(data: bytes, border: bytes) -> int:
    at = data.rfind(border)
    return 0 if at < 0 else at + len(border)
