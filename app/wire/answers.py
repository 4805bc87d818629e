"""Reading what an engine answers: only usage, the proper end, and failures; everything else passes as it came.

Each of the three wire dialects ends its streams and counts its tokens in its own way.
"""

from typing import Any

import msgspec

from app.errors import EngineBroken
from app.generation import Route, Usage
from app.wire.sse import data_of, event, split


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """OpenAI's two spellings and Anthropic's in one: whichever is there is read."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None

    def merged(self, earlier: Usage | None) -> Usage:
        before = earlier or Usage()
        details = self.prompt_tokens_details or self.input_tokens_details
        cached = details.cached_tokens if details else self.cache_read_input_tokens
        return Usage(
            prompt_tokens=_first(self.prompt_tokens, self.input_tokens, before.prompt_tokens),
            completion_tokens=_first(self.completion_tokens, self.output_tokens, before.completion_tokens),
            cached_tokens=_first(cached, before.cached_tokens),
        )


def _first(*counts: int | None) -> int:
    return next((count for count in counts if count is not None), 0)


class _Counted(msgspec.Struct):
    usage: _Usage | None = None


class _Chunk(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[msgspec.Raw] | None = None


class _Nested(msgspec.Struct):
    """Where Responses (`response`) and Messages (`message`, or beside it) carry their usage."""

    usage: _Usage | None = None
    response: _Counted | None = None
    message: _Counted | None = None


_counted = msgspec.json.Decoder(_Counted).decode
_chunk = msgspec.json.Decoder(_Chunk).decode
_nested = msgspec.json.Decoder(_Nested).decode


def usage_of(body: bytes) -> Usage | None:
    """What a whole JSON answer says it used; `None` where it says nothing readable."""
    try:
        found = _counted(body).usage
    except msgspec.DecodeError:
        return None
    return found.merged(None) if found else None


class ChatStream:
    """A stream of chat or completion chunks: `choices: []` carries the usage, `[DONE]` is the end."""

    def __init__(self, shows_usage: bool) -> None:
        self.usage: Usage | None = None
        self._shows_usage = shows_usage
        self._last = b""

    def read(self, block: bytes) -> bytes:
        """What of `block` the client gets, possibly nothing."""
        self._last = block
        if b'"usage"' in block:
            block = self._count(block)
        if b'data: {"error"' in block or b'data: {"object":"error"' in block:
            raise EngineBroken
        return block

    def close(self) -> None:
        """The engine has ended the stream: did it end properly?"""
        if not self._last.rstrip().endswith(b"data: [DONE]"):
            raise EngineBroken

    def _count(self, block: bytes) -> bytes:
        return b"".join(map(self._count_one, split(block)))

    def _count_one(self, one: bytes) -> bytes:
        if b'"usage"' not in one:
            return one
        data = data_of(one)
        try:
            chunk = _chunk(data)
        except msgspec.DecodeError:
            return one
        if chunk.usage is None:
            return one
        self.usage = chunk.usage.merged(self.usage)
        if self._shows_usage:
            return one
        if not chunk.choices:
            return b""
        fields: dict[str, Any] = msgspec.json.decode(data)
        del fields["usage"]
        return event(fields)


class _NamedStream:
    """Responses and Messages: events have names, usage is always shown, and the last one's name is the end."""

    ends: tuple[bytes, ...]
    failures: tuple[bytes, ...]

    def __init__(self, shows_usage: bool) -> None:
        self.usage: Usage | None = None
        self._ended = False

    def read(self, block: bytes) -> bytes:
        if b'"usage"' in block:
            for one in split(block):
                self._count(one)
        if any(name in block for name in self.failures):
            raise EngineBroken
        self._ended = self._ended or any(name in block for name in self.ends)
        return block

    def close(self) -> None:
        if not self._ended:
            raise EngineBroken

    def _count(self, one: bytes) -> None:
        try:
            found = _nested(data_of(one))
        except msgspec.DecodeError:
            return
        for part in (found, found.response, found.message):
            if part is not None and part.usage is not None:
                self.usage = part.usage.merged(self.usage)


class ResponsesStream(_NamedStream):
    ends = (b"event: response.completed\n", b"event: response.incomplete\n")
    failures = (b"event: error\n", b"event: response.failed\n")


class MessagesStream(_NamedStream):
    ends = (b"event: message_stop\n",)
    failures = (b"event: error\n",)


AnswerStream = ChatStream | ResponsesStream | MessagesStream

_STREAMS: dict[Route, type[AnswerStream]] = {Route.RESPONSES: ResponsesStream, Route.MESSAGES: MessagesStream}


def stream_reader(route: Route, *, shows_usage: bool) -> AnswerStream:
    return _STREAMS.get(route, ChatStream)(shows_usage)
