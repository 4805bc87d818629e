"""Answers, as the library gives them, and how they are read from the wire."""

from dataclasses import dataclass
from typing import Any

import msgspec

TOKEN_ID = "token_id:"


@dataclass(frozen=True)
class Logprob:
    logprob: float
    decoded_token: str | None = None
    """Its text, where the server tells: for the tokens that were chosen, in a chat."""


@dataclass(frozen=True)
class ResponseOutput:
    """One of the `n` answers to a prompt."""

    text: str
    logprobs: list[dict[int, Logprob]] | None = None
    """For each token of the answer: the chosen one first, and the most likely ones, by token id."""


class _TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list["_TokenLogprob"] = []


class _ChatLogprobs(msgspec.Struct):
    content: list[_TokenLogprob] | None = None


class _Message(msgspec.Struct):
    content: str | None = None


class _ChatChoice(msgspec.Struct):
    index: int
    message: _Message
    logprobs: _ChatLogprobs | None = None

    def output(self) -> ResponseOutput:
        told = self.logprobs.content if self.logprobs else None
        return ResponseOutput(self.message.content or "", None if told is None else [_position(each) for each in told])


class _TextLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None

    def positions(self) -> list[dict[int, Logprob]]:
        tops = self.top_logprobs or [None] * len(self.tokens)
        return [
            {_id(token): Logprob(_certain(logprob))}
            | {_id(each): Logprob(value) for each, value in (top or {}).items()}
            for token, logprob, top in zip(self.tokens, self.token_logprobs, tops, strict=True)
        ]


class _TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: _TextLogprobs | None = None

    def output(self) -> ResponseOutput:
        return ResponseOutput(self.text, self.logprobs.positions() if self.logprobs else None)


class _Chat(msgspec.Struct):
    choices: list[_ChatChoice]


class _Text(msgspec.Struct):
    choices: list[_TextChoice]


_chat = msgspec.json.Decoder(_Chat)
_text = msgspec.json.Decoder(_Text)


def chat_outputs(body: bytes) -> list[ResponseOutput]:
    """Raises ValueError where this is no answer."""
    return [each.output() for each in sorted(_chat.decode(body).choices, key=lambda choice: choice.index)]


def text_outputs(body: bytes) -> list[ResponseOutput]:
    return [each.output() for each in sorted(_text.decode(body).choices, key=lambda choice: choice.index)]


def _position(chosen: _TokenLogprob) -> dict[int, Logprob]:
    alternatives = {_id(each.token): Logprob(each.logprob, _decoded(each)) for each in chosen.top_logprobs}
    own = {_id(chosen.token): Logprob(chosen.logprob, _decoded(chosen))}
    return own | alternatives | own


def _id(token: str) -> int:
    return int(token.removeprefix(TOKEN_ID))


def _decoded(token: _TokenLogprob) -> str | None:
    """vLLM spells an alternative's id out here, too."""
    text = None if token.bytes is None else bytes(token.bytes).decode(errors="replace")
    return None if text == token.token else text


def _certain(logprob: float | None) -> float:
    """A token that had no alternative has none told."""
    return 0.0 if logprob is None else logprob


def refusal(body: bytes) -> tuple[str, str | None]:
    """A server's own words, and its code, from an error in OpenAI's shape, or what it sent instead."""
    try:
        error: Any = msgspec.json.decode(body)["error"]
        return str(error["message"]), error.get("code") and str(error["code"])
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
        return body[:500].decode(errors="replace"), None
