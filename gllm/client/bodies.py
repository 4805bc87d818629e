"""The bodies of calls: what was given, and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

from gllm.client.answers import ReturnMode
from gllm.client.call import CallOptions

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HEALTH = "/health"
LOAD_MODEL = "/load_model"
RELEASE_GPUS = "/release_gpus"
ADD_WORKER = "/add_worker"
KEYS = "/v1/idempotency-keys/"

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Stop = str | Sequence[str]
Body = dict[str, Any]


class ChatOptions(CallOptions, total=False):
    min_p: float | None
    n: int
    stop: Stop | None


class CompletionOptions(CallOptions, total=False):
    best_of: int | None
    echo: bool
    frequency_penalty: float
    logit_bias: Mapping[str, float] | None
    logprobs: int | None
    max_tokens: int
    min_p: float | None
    n: int
    presence_penalty: float
    seed: int | None
    stop: Stop | None
    temperature: float
    top_p: float


def chat_body(
    model: str,
    messages: Messages,
    max_tokens: int | None = None,
    temperature: float | None = None,
    *,
    min_p: float | None = None,
    n: int = 1,
    stop: Stop | None = None,
) -> Body:
    """What is left out is decided by the operator's settings or the model's own."""
    return _given(
        model=model,
        messages=[dict(message) for message in messages],
        max_tokens=max_tokens,
        temperature=temperature,
        min_p=min_p,
        n=n,
        stop=_plain(stop),
    )


def completion_body(
    model: str,
    prompt: Prompt,
    *,
    best_of: int | None = None,
    echo: bool = False,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[str, float] | None = None,
    logprobs: int | None = None,
    max_tokens: int = 16,
    min_p: float | None = None,
    n: int = 1,
    presence_penalty: float = 0.0,
    seed: int | None = None,
    stop: Stop | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Body:
    """The numbers are said even where they are the usual ones: a model may bring others."""
    return _given(
        model=model,
        prompt=_plain(prompt),
        best_of=best_of,
        echo=echo or None,
        frequency_penalty=frequency_penalty,
        logit_bias=dict(logit_bias) if logit_bias else None,
        logprobs=logprobs,
        max_tokens=max_tokens,
        min_p=min_p,
        n=n,
        presence_penalty=presence_penalty,
        seed=seed,
        stop=_plain(stop),
        temperature=temperature,
        top_p=top_p,
    )


def streamed(body: Body, mode: ReturnMode) -> Body:
    if mode == "primitives" and body["n"] > 1:
        raise ValueError("Pieces of text do not say whose they are: with n > 1 ask for return_mode='openai' or 'raw'.")
    return {**body, "stream": True}


def split_options(options: Mapping[str, Any]) -> tuple[Body, CallOptions]:
    """What goes into the body, and what is said about the call."""
    about = {name: value for name, value in options.items() if name in CallOptions.__annotations__}
    fields = {name: value for name, value in options.items() if name not in about}
    return fields, CallOptions(**about)  # type: ignore[typeddict-item]  # the names were just looked at


def base_url(server_address: str) -> str:
    """With `/v1` or without, as people have it."""
    url = server_address.rstrip("/").removesuffix("/v1").rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"The server's address must begin with http:// or https://, not {server_address!r}")
    return url


def _given(**fields: Any) -> Body:
    return {name: value for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else list(value)
