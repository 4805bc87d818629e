"""From tokens to text, one token at a time: no character is ever split, no stop string ever leaks.

Pure, and linear in what it is fed: nothing here looks at the text that has been released already.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol


class Detokenizer(Protocol):
    def push(self, token: int) -> str:
        """The characters that became whole with this token, possibly none."""

    def finish(self) -> str:
        """What was held back for a character that will not be completed any more."""


class ByteDetokenizer:
    """For vocabularies in which a token stands for the same bytes wherever it appears (byte-level BPE).

    Its text is exactly the bytes of all tokens, decoded as UTF-8 with U+FFFD for what is not UTF-8.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._pieces[token])

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For all other vocabularies, where a token's text depends on the one before it: decodes a short window again.

    The window slides whenever a character is complete, or when it has been held for longer than any character is.
    """

    _LONGEST_CHARACTER = 8  # tokens; UTF-8 needs at most four bytes, one token each

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._context = 0  # tokens of the window whose text is released already

    def push(self, token: int) -> str:
        self._window.append(token)
        known, text = self._decode(self._window[: self._context]), self._decode(self._window)
        held = len(self._window) - self._context
        if len(text) <= len(known) or (text.endswith("\ufffd") and held < self._LONGEST_CHARACTER):
            return ""
        self._window = self._window[self._context :]
        self._context = len(self._window)
        return text[len(known) :]

    def finish(self) -> str:
        known, text = self._decode(self._window[: self._context]), self._decode(self._window)
        self._context = len(self._window)
        return text[len(known) :]


class StopMatcher:
    """Releases text as soon as it cannot be the beginning of a stop string any more.

    The stop string that is complete first ends the text; of two that end together the longer one. What is released does
    not depend on how the text was cut into pieces. One automaton a stop string (Knuth, Morris, Pratt), so the cost is
    the same for a short and for a long text.
    """

    def __init__(self, stops: Sequence[str] = (), *, include: bool = False) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._reached = [0] * len(self._stops)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        if not self._stops:
            return text
        pending = self._held + text
        for at, character in enumerate(text, start=len(self._held)):
            if stop := self._step(character):
                self.matched, self._held = stop, ""
                end = at + 1
                return pending[: end if self._include else end - len(stop)]
        safe = len(pending) - max(self._reached)
        self._held = pending[safe:]
        return pending[:safe]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> str | None:
        found: str | None = None
        for index, (stop, borders) in enumerate(self._stops):
            reached = self._reached[index]
            while reached and stop[reached] != character:
                reached = borders[reached - 1]
            if stop[reached] == character:
                reached += 1
            if reached == len(stop):
                found = stop if found is None else max(found, stop, key=len)
                reached = borders[reached - 1]
            self._reached[index] = reached
        return found


def _borders(stop: str) -> list[int]:
    """For each prefix, how much of its end is also its beginning: where to go on after a mismatch."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        if stop[index] == stop[length]:
            length += 1
        borders[index] = length
    return borders
