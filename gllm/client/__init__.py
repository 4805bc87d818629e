"""The Python client: GLLM's methods, and a caller that co-operates with the gateway when things go wrong."""

from gllm.client.answers import (
    ChatChoice,
    ChatChunk,
    ChatGenerationResponse,
    CompletionChoice,
    CompletionChunk,
    CompletionResponse,
    Message,
    Usage,
)
from gllm.client.asynchronous import AsyncGLLM
from gllm.client.asynchronous_stream import AsyncStream
from gllm.client.errors import (
    AuthenticationFailed,
    BrokenAnswer,
    Conflict,
    ConnectionFailed,
    LoadRefused,
    NotFound,
    Overloaded,
    RateLimited,
    Refused,
    RemoteError,
    ServerFailed,
    StreamBroken,
    TimedOut,
)
from gllm.client.retries import Retries
from gllm.client.sync import GLLM
from gllm.client.sync_stream import Stream

__all__ = [
    "GLLM",
    "AsyncGLLM",
    "AsyncStream",
    "AuthenticationFailed",
    "BrokenAnswer",
    "ChatChoice",
    "ChatChunk",
    "ChatGenerationResponse",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionResponse",
    "Conflict",
    "ConnectionFailed",
    "LoadRefused",
    "Message",
    "NotFound",
    "Overloaded",
    "RateLimited",
    "Refused",
    "RemoteError",
    "Retries",
    "ServerFailed",
    "Stream",
    "StreamBroken",
    "TimedOut",
    "Usage",
]
