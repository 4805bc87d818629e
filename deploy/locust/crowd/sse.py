"""A stream as its reader hears it: when words came, how it ended, and whether anything came after that."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

_WORDS = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments)": ?"[^"]')
"""An event that brings something to read. The first of a stream often brings a role and an empty text."""

_DONE = b"[DONE]"


@dataclass(slots=True)
class Stream:
    first_at: float | None = None
    last_at: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    """Between events that bring words. Several tokens may come in one, so this is not the time of a token."""
    pieces: int = 0
    usage: dict[str, Any] | None = None
    done: bool = False
    error: str = ""
    """The code of the error event that ended it."""
    after: str = ""
    """What came after its end."""

    def hear(self, event: bytes, at: float) -> None:
        data = _data_of(event)
        if data is None:
            return
        if self.done or self.error:
            self.after = self.after or data[:80].decode(errors="replace")
        elif data == _DONE:
            self.done = True
        elif _WORDS.search(data):
            self._words(at)
        elif b'"usage"' in data or b'"error"' in data:
            self._facts(data)

    @property
    def ended(self) -> bool:
        return self.done or bool(self.error)

    @property
    def tokens(self) -> int:
        """As the engine counted them; of a stream that was not heard to its end, what was heard."""
        return int(self.usage["completion_tokens"]) if self.usage else self.pieces

    @property
    def per_token_s(self) -> float | None:
        """After the first one, which waits for other things."""
        if self.first_at is None or self.last_at is None or self.tokens < 2:
            return None
        return (self.last_at - self.first_at) / (self.tokens - 1)

    def _words(self, at: float) -> None:
        if self.last_at is None:
            self.first_at = at
        else:
            self.gaps_s.append(at - self.last_at)
        self.last_at = at
        self.pieces += 1

    def _facts(self, data: bytes) -> None:
        try:
            said = json.loads(data)
        except ValueError:
            self.error = "unreadable"
            return
        if error := said.get("error"):
            self.error = str(error.get("code") or "error")
        self.usage = said.get("usage") or self.usage


def _data_of(event: bytes) -> bytes | None:
    """`None` for what keeps a connection alive and says nothing."""
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
