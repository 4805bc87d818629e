"""What a call will use, guessed before it is made, and learned from what calls used before. No tokenizer: a guess must
cost less than what it guards."""

import math
from collections.abc import Hashable
from typing import Generic, TypeVar

import msgspec

from app.generation import Call, Expected, Route, Usage

TOKENS_PER_BYTE = 0.25
"""Of a model that has not been heard of yet."""
CONTEXT = 131_072
"""Of a model that does not say: what is larger is media, not text."""
OUTPUT = 1_024
"""What is made, as a first guess, for a call that sets no limit."""
COMPLETION = 16
"""Where a completion sets no limit, this is its limit in every engine."""
REMEMBERED = 4_096
"""Models, and tenants with models, that are remembered at most."""

_TEXT = (0.05, 1.0)
"""Tokens that a byte of text may be. Pictures are far outside: a large body of few tokens, or a link with many."""
_SLOWEST, _FASTEST = 50_000, 0.1
"""The ratio moves by a prompt's bytes / `_SLOWEST`, at most by `_FASTEST`: long prompts know it better."""
_ANSWERLESS = (Route.EMBEDDINGS, Route.TOKENIZE, Route.DETOKENIZE)
_MODELLESS = (Route.TOKENIZE, Route.DETOKENIZE)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(dict[K, V], Generic[K, V]):
    """The latest entries only."""

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= REMEMBERED and key not in self:
            del self[next(iter(self))]
        super().__setitem__(key, value)


class Peak(msgspec.Struct):
    """The largest of the latest values, twenty at least: a high quantile that forgets, for two comparisons."""

    before: float
    now: float = 0.0
    seen: int = 0

    @property
    def value(self) -> float:
        return max(self.before, self.now)

    def saw(self, value: float) -> None:
        if value > self.now:
            self.now = value
        self.seen += 1
        if self.seen == 20:
            self.before, self.now, self.seen = self.now, 0.0, 0


class Ratio(msgspec.Struct):
    """Tokens per byte of one model's prompts, by the latest."""

    value: float = TOKENS_PER_BYTE

    def saw(self, value: float, size: int) -> None:
        """Of a prompt of so many bytes."""
        self.value += (value - self.value) * min(_FASTEST, size / _SLOWEST)


_UNHEARD = Ratio()


class Estimates:
    def __init__(self) -> None:
        self._ratios: dict[str, Ratio] = Remembered()
        self._shares: dict[tuple[str, str, bool], Peak] = Remembered()

    def of(self, call: Call, context: int | None) -> Expected:
        """`context` is the longest that the model takes, prompt and answer together."""
        if call.route in _MODELLESS:
            return Expected(0, 0, 0)
        room = context or CONTEXT
        ratio = self._ratios.get(call.model, _UNHEARD)
        prompt = min(room, math.ceil(call.prompt_bytes * ratio.value))
        asked = _asked(call, room - prompt, room)
        peak = self._shares.get(_share_key(call))
        if peak is not None:
            output = math.ceil(asked * peak.value)
        else:
            output = asked if call.max_tokens is not None else min(asked, OUTPUT)
        return Expected(prompt, output * call.choices, prompt + asked * call.choices)

    def learn(self, call: Call, expected: Expected, usage: Usage) -> None:
        """From the end of a call: `expected` is what was thought of it, `usage` what its engine counted."""
        self._learn_ratio(call, usage)
        asked = expected.most_tokens - expected.prompt_tokens
        if asked <= 0:
            return
        key = _share_key(call)
        peak = self._shares.get(key)
        if peak is None:
            peak = self._shares[key] = Peak(before=expected.output_tokens / asked)
        peak.saw(min(1.0, usage.completion_tokens / asked))

    def _learn_ratio(self, call: Call, usage: Usage) -> None:
        if not call.prompt_bytes:
            return
        seen = usage.prompt_tokens / call.prompt_bytes
        if _TEXT[0] <= seen <= _TEXT[1]:
            ratio = self._ratios.get(call.model)
            if ratio is None:
                ratio = self._ratios[call.model] = Ratio()
            ratio.saw(seen, call.prompt_bytes)


def _asked(call: Call, left: int, room: int) -> int:
    """How many tokens one answer may have."""
    if call.max_tokens is not None:
        return min(call.max_tokens, room)
    if call.route in _ANSWERLESS:
        return 0
    return COMPLETION if call.route is Route.COMPLETIONS else left


def _share_key(call: Call) -> tuple[str, str, bool]:
    """Who sets a limit uses another share of it than who leaves all the room there is."""
    return call.tenant.name, call.model, call.max_tokens is None
