"""What a client has been told of its stream, kept so that another replica can go on with it.

The events are kept as they came. They are read when their replica has died, or when there are so many that their text
alone takes much less room.
"""

from typing import Any

from app.generation import Call, Route, Usage
from app.wire.answers import UNREADABLE, read_usage
from app.wire.continuation import rest_of, tokens_allowed
from app.wire.seam import Chunk, Seam, read_chunk
from app.wire.sse import DONE, event

KEPT_BYTES = 32 * 1024
"""Of events that are not read yet: a hundred, as a rule."""

LONGEST_TEXT = 2**20
"""A longer one is not kept, and nobody goes on with it."""

_THOUGHTS = ("<think", "</think")
"""Where a model's thoughts are part of its text, templates make something else of them in a message."""


class Transcript:
    """Of one stream from its first event on, whichever replicas make it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._blocks: list[bytes] = []
        self._room = KEPT_BYTES
        self._first: Chunk | None = None
        self._text = ""
        self._pieces = 0
        """In how many events it came."""
        self._plain = True
        """Nothing else came."""
        self._usage = Usage()
        """When the last piece came."""
        self._finished = False
        self._told_usage = False
        """At its end."""

    def add(self, block: bytes) -> None:
        """The client gets this next. Called for each event, hence so short."""
        self._blocks.append(block)
        self._room -= len(block)
        if self._room < 0:
            self._read()

    def remainder(self) -> Seam | bytes | None:
        """Where another replica can go on; or the events that are missing, if only these are; or neither."""
        self._read()
        text, tokens, allowed = self._text, self._usage.completion_tokens, tokens_allowed(self._call)
        is_chat = self._call.route is Route.CHAT
        if self._first is None or not self._plain or (is_chat and any(each in text for each in _THOUGHTS)):
            return None
        if tokens < self._pieces or (allowed is not None and tokens > allowed):
            return None  # it is not known how much was made
        if self._finished or tokens == allowed:
            return self._end(self._first)
        if not (text.strip() if is_chat else text):  # there is no message to go on with: it begins anew
            return Seam(self._call, self._first, None, text)
        spaces = text[len(text.rstrip()) :] if is_chat else ""
        return Seam(rest_of(self._call, text, tokens), self._first, self._usage, spaces)

    def _read(self) -> None:
        """From events to what matters of them."""
        blocks, self._blocks, self._room = self._blocks, [], KEPT_BYTES
        if not self._plain:
            return
        said: list[str] = []
        try:
            for line in b"".join(blocks).split(b"\n"):
                if line.startswith((b"data: {", b"data:{")):
                    self._hear(read_chunk(line[5:]), said)
        except UNREADABLE:
            self._plain = False
        self._text += "".join(said)
        self._pieces += len(said)
        if len(self._text) > LONGEST_TEXT:
            self._plain = False
        if not self._plain:
            self._text = ""

    def _hear(self, chunk: Chunk, said: list[str]) -> None:
        self._first = self._first or chunk
        self._told_usage = self._told_usage or not chunk.choices
        told = read_usage(chunk.usage, None)
        silent = False
        for piece in chunk.choices:
            text = piece.said
            if text is None:
                self._plain = False
            elif text:
                said.append(text)
            silent = not text and piece.finish_reason is None
            self._finished = self._finished or piece.finish_reason is not None
        if told is not None:  # tokens of which nothing has been seen yet are made again, and count then
            made = self._usage.completion_tokens if silent else told.completion_tokens
            self._usage = Usage(told.prompt_tokens, made, told.cached_tokens)

    def _end(self, first: Chunk) -> bytes:
        """As the engine would have said it: all was made, and the last events did not come."""
        usage, last = self._usage, b""
        if not self._finished:
            said: dict[str, Any] = {"text": ""} if self._call.route is Route.COMPLETIONS else {"delta": {}}
            choice = {"index": 0, **said, "logprobs": None, "finish_reason": "length"}
            last = event({**first.head, "choices": [choice]})
        if not self._told_usage:
            told = {
                "prompt_tokens": usage.prompt_tokens,
                "total_tokens": usage.tokens,
                "completion_tokens": usage.completion_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            }
            last += event({**first.head, "choices": [], "usage": told})
        return last + DONE
