"""What a call is, and what it used."""

from enum import StrEnum

import msgspec


class Route(StrEnum):
    """The endpoints an engine answers, by the path they have on both sides."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"


class Usage(msgspec.Struct, frozen=True):
    """Tokens, as the engine itself counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Call(msgspec.Struct, frozen=True):
    """One request, parsed and checked. `body` is the client's own bytes, unless a field had to change."""

    id: str
    route: Route
    model: str
    body: bytes
    expires_at: float
    """On the clock of the process; everything that waits gets what is left of it."""
    stream: bool = False
    shows_usage: bool = False
    """The client asked for the usage event; otherwise it is read and kept from the client."""
    prompt_bytes: int = 0
    max_tokens: int | None = None
    choices: int = 1
    traceparent: str | None = None
