"""What a client has been told of its stream, kept so that another replica can go on with it.

The events are kept as they came, and read when their replica has died. The older ones differ in nothing but their text:
they are kept as one event that says it all, which needs no reading either.
"""

import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from app.generation import Call, Route, Usage
from app.wire.answers import UNREADABLE, read_usage
from app.wire.continuation import rest_of, tokens_allowed
from app.wire.seam import Chunk, Seam, read_chunk
from app.wire.sse import DONE, event

KEPT_BYTES = 16 * 1024
"""Of events as they came: about fifty."""

MOST_BYTES = 2**20
"""Of older ones. Of what takes more nothing is kept, and nobody goes on with it."""

_SAID = re.compile(rb'"(?:content|text)": ?"((?:[^"\\]|\\.)+)"')
"""A text that is not empty. Inside a JSON string its quotes would be escaped."""

_THOUGHTS = ("<think", "</think")
"""Where a model's thoughts are part of its text, templates make something else of them in a message."""


class Transcript:
    """Of one stream from its first event on, whichever replicas make it."""

    __slots__ = (
        "_blocks",
        "_call",
        "_finished",
        "_first",
        "_older",
        "_older_bytes",
        "_pieces",
        "_plain",
        "_room",
        "_shown",
        "_text",
        "_told_usage",
        "_usage",
    )

    def __init__(self, call: Call) -> None:
        self._call = call
        self._blocks: list[bytes] = []
        self._shown: list[bytes] = []
        """The same, without the counts that differ from event to event."""
        self._room = KEPT_BYTES
        self._older: list[bytes] = []
        self._older_bytes = 0
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

    def add(self, block: bytes, shown: bytes) -> None:
        """The client gets `shown` of it next. Called for each event, hence so short."""
        self._blocks.append(block)
        self._shown.append(shown)
        self._room -= len(block)
        if self._room < 0:
            self._shorten()

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

    def _shorten(self) -> None:
        """All but the last block become older ones; it tells what was used until then."""
        latest = self._shown[-1].rstrip().rpartition(b"\n\n")[2]
        said = _SAID.search(latest)
        if said is None and self._room > -KEPT_BYTES:
            return  # the next one may have a text
        if said is not None and self._plain:
            texts = b"".join(self._shown[:-1]).split(b"\n\n")
            self._older += self._merged(texts, latest[: said.start(1)], latest[said.end(1) :])
            self._older_bytes = sum(map(len, self._older))
        if said is None or self._older_bytes > MOST_BYTES:
            self._forget()
        del self._blocks[:-1], self._shown[:-1]
        self._room = KEPT_BYTES

    def _merged(self, events: list[bytes], before: bytes, behind: bytes) -> Iterator[bytes]:
        """Those that have the same `before` their texts and `behind` them, as one."""
        for alike, run in groupby(events, lambda one: one.startswith(before) and one.endswith(behind)):
            if alike:
                texts = [one[len(before) : -len(behind)] for one in run]
                self._pieces += len(texts) - texts.count(b"") - 1  # they are read as one
                yield b"%b%b%b" % (before, b"".join(texts), behind)
            else:
                yield from run

    def _forget(self) -> None:
        self._plain = False
        self._older, self._text = [], ""

    def _read(self) -> None:
        """From events to what matters of them."""
        events = b"\n".join((*self._older, *self._blocks))
        self._blocks, self._shown, self._room = [], [], KEPT_BYTES
        self._older, self._older_bytes = [], 0
        said: list[str] = []
        try:
            for line in events.split(b"\n"):
                if line.startswith((b"data: {", b"data:{")):
                    self._hear(read_chunk(line[5:]), said)
        except UNREADABLE:
            self._plain = False
        self._text += "".join(said)
        self._pieces += len(said)

    def _hear(self, chunk: Chunk, said: list[str]) -> None:
        self._first = self._first or chunk
        told = read_usage(chunk.usage, None)
        self._told_usage = self._told_usage or not (chunk.choices or told is None)
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
