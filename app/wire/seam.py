"""Where another replica's events become the continuation of those that a client has: the same answer, told once."""

from typing import Any

import msgspec
from msgspec import Raw

from app.errors import EngineNonsense, EngineRefused
from app.generation import Call, Usage
from app.wire.answers import UNREADABLE, Count, read_usage
from app.wire.sse import data_of, event, split


class Piece(msgspec.Struct):
    """A choice's part in a chunk, of either endpoint."""

    index: Count = 0
    text: str | None = None
    delta: dict[str, Any] = {}
    finish_reason: str | None = None

    @property
    def said(self) -> str | None:
        """`None`: something that is no plain text."""
        content = self.delta.get("content") or ""
        more = any(value for name, value in self.delta.items() if name not in ("role", "content"))
        return None if more or self.index or not isinstance(content, str) else (self.text or "") + content


class Chunk(msgspec.Struct):
    id: str = ""
    created: int = 0
    model: str = ""
    object: str = ""
    choices: list[Piece] = []
    usage: Raw = Raw()

    @property
    def head(self) -> dict[str, Any]:
        """What all chunks of an answer have in common."""
        return {"id": self.id, "object": self.object, "created": self.created, "model": self.model}


read_chunk = msgspec.json.Decoder(Chunk).decode
_fields = msgspec.json.Decoder(dict[str, Any]).decode


class Seam:
    def __init__(self, call: Call, first: Chunk, before: Usage | None, spaces: str) -> None:
        """`call`: what is asked of the other replica. `before`: what was used so far; `None` if it makes the whole
        answer. `spaces`: the last ones of the text. Templates cut them off a message, so that the model may well begin
        with them.
        """
        self.call = call
        self.counted = False
        """The other replica has told what it used."""
        self._head = first.head
        self._before = before
        self._spaces = spaces

    def join(self, block: bytes) -> bytes:
        """What the first replica would have sent in place of `block`."""
        return b"".join(map(self._join, split(block)))

    def guess(self, events: int) -> Usage | None:
        """Where it has not told: an event is about a token."""
        before = self._before
        if before is None:
            return None
        return Usage(before.prompt_tokens, before.completion_tokens + events, before.cached_tokens)

    def _join(self, one: bytes) -> bytes:
        data = data_of(one)
        if not data.startswith(b"{"):
            return one
        try:
            read, chunk = read_chunk(data), _fields(data)
        except UNREADABLE as error:
            raise EngineNonsense(detail="an event that cannot be read") from error
        if "error" in chunk or read.object == "error":
            return one
        if any(piece.said is None for piece in read.choices):
            raise EngineRefused(detail="it goes on with something other than text")
        usage = read_usage(read.usage, None)
        if usage is not None:
            self.counted = True
            chunk["usage"] = self._whole(usage, chunk["usage"])
        if read.choices:
            left = [self._shortened(choice) for choice in chunk["choices"]]
            if not any(left) and not any(piece.finish_reason for piece in read.choices):
                return b""
        return event(chunk | self._head)

    def _shortened(self, choice: dict[str, Any]) -> str:
        """By what the client has: who speaks, and the spaces. What is left of its text."""
        said: dict[str, Any] = choice.get("delta", choice)
        said.pop("role", None)
        name = "text" if said is choice else "content"
        text: str = said.get(name) or ""
        while text and self._spaces and text[0] == self._spaces[0]:
            text, self._spaces = text[1:], self._spaces[1:]
        if text:
            self._spaces = ""
        if name in said:
            said[name] = text
        return text

    def _whole(self, usage: Usage, told: dict[str, Any]) -> dict[str, Any]:
        """Of the whole answer, whose prompt was the client's own."""
        before = self._before
        if before is None:
            return told
        prompt, completion = before.prompt_tokens, before.completion_tokens + usage.completion_tokens
        told |= {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        if told.get("prompt_tokens_details") is not None:
            told["prompt_tokens_details"] = {"cached_tokens": before.cached_tokens}
        return told
