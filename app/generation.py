"""What a call is, and what it used."""

from enum import StrEnum

import msgspec

from app.tenant import ANONYMOUS, Priority, Tenant


class Route(StrEnum):
    """The endpoints an engine answers, by the path they have on both sides."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """Tokens, as the engine itself counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


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
    counts_along: bool = False
    """The engine is asked to tell with each event what is used so far, which the client does not get to see."""
    continuable: bool = False
    """Another replica could go on with its stream, from the text so far."""
    prompt_bytes: int = 0
    max_tokens: int | None = None
    temperature: float | None = None
    choices: int = 1
    """Answers asked for, of all prompts together."""
    prompts: int = 1
    """A completion may hold several."""
    traceparent: str | None = None
    """What the engine is told of the trace that its work belongs to."""
    tracestate: str = ""
    tenant: Tenant = ANONYMOUS
    priority: Priority = Priority.NORMAL
    key: str | None = None
    """The client's idempotency key."""
    fingerprint: bytes = b""
    """What a keyed call asks for, by the client's own body: a key stands for one request."""
    seen: int = 0
    """How many events of a keyed stream the client has already (`Last-Event-ID`)."""
    session: str = ""
    """What the client says belongs together (`X-Session-Id`), within its tenant."""
    prefix: tuple[int, ...] = ()
    """The chain of its prompt, where the choice of a replica looks at prompts."""


class Expected(msgspec.Struct, frozen=True, array_like=True):
    """What a call will use, estimated before it is made."""

    prompt_tokens: int
    output_tokens: int
    """Probably."""
    most_tokens: int
    """Prompt and output, if all that was asked for is made."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens
