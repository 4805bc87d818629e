"""Where GLLM's users found these names."""

from gllm.client import GLLM, ChatGenerationResponse, CompletionResponse, Message, RemoteError

__all__ = ["GLLM", "ChatGenerationResponse", "CompletionResponse", "Message", "RemoteError"]
