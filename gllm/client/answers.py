"""What calls return: the server's answers as objects, as plain values, or as they came."""

import json
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from gllm.client.errors import BrokenAnswer

ReturnMode = Literal["openai", "primitives", "raw"]

T = TypeVar("T")
Read = Callable[[bytes], T]
JsonObject = dict[str, Any]


class Answer(BaseModel):
    """Fields that an engine adds are there too, by their names."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Usage(Answer):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class Message(Answer):
    role: str | None = None
    content: str | None = None


class ChatChoice(Answer):
    """`choice.message.content`, and `choice.content` as GLLM's users wrote it."""

    message: Message
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None

    @property
    def role(self) -> str | None:
        return self.message.role

    @property
    def content(self) -> str | None:
        return self.message.content

    @model_validator(mode="before")
    @classmethod
    def _from_a_bare_message(cls, given: Any) -> Any:
        """GLLM's balancer gave its choices so."""
        return {"message": given} if isinstance(given, dict) and "message" not in given else given


class ChatGenerationResponse(Answer):
    choices: list[ChatChoice]
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    usage: Usage | None = None


class CompletionChoice(Answer):
    text: str
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None


class CompletionResponse(Answer):
    choices: list[CompletionChoice]
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    usage: Usage | None = None


class ChunkChoice(Answer):
    delta: Message = Message()
    index: int = 0
    finish_reason: str | None = None
    logprobs: Any = None


class ChatChunk(Answer):
    choices: list[ChunkChoice] = []
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    usage: Usage | None = None


class CompletionChunk(Answer):
    choices: list[CompletionChoice] = []
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    usage: Usage | None = None


# --- reading them, by return mode ---------------------------------------------------------------------------------


def completion(mode: ReturnMode) -> Read[CompletionResponse | list[str] | JsonObject]:
    return _by_mode(mode, CompletionResponse, lambda answer: [choice["text"] for choice in answer["choices"]])


def chat(mode: ReturnMode) -> Read[ChatGenerationResponse | list[JsonObject] | JsonObject]:
    return _by_mode(
        mode,
        ChatGenerationResponse,
        lambda answer: [choice.get("message", choice) for choice in answer["choices"]],
    )


def completion_chunk(mode: ReturnMode) -> Read[Any]:
    return _by_mode(mode, CompletionChunk, lambda chunk: "".join(choice["text"] for choice in chunk["choices"]))


def chat_chunk(mode: ReturnMode) -> Read[Any]:
    return _by_mode(
        mode,
        ChatChunk,
        lambda chunk: "".join(choice["delta"].get("content") or "" for choice in chunk["choices"]),
    )


def _by_mode(mode: ReturnMode, model: type[Answer], plain: Callable[[JsonObject], Any]) -> Read[Any]:
    """Wrong words are the caller's mistake: said at once, whatever the server would answer."""
    match mode:
        case "openai":
            return _understood(model.model_validate_json)
        case "primitives":
            return _understood(lambda body: plain(_object(body)))
        case "raw":
            return _understood(_object)
    raise ValueError(f"Unknown return mode: {mode!r}, must be one of {', '.join(get_args(ReturnMode))}")


def _object(body: bytes) -> JsonObject:
    found = json.loads(body)
    if not isinstance(found, dict):
        raise TypeError("no JSON object")
    return cast(JsonObject, found)


def _understood(read: Read[T]) -> Read[T]:
    def reading(body: bytes) -> T:
        try:
            return read(body)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ValidationError) as error:
            shown = body[:80].decode(errors="replace")
            raise BrokenAnswer(f"The answer could not be understood: {shown!r}", retryable=True) from error

    return reading
