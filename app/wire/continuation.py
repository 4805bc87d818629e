"""Which streams another replica could go on with, and how it is asked to: by the text so far (docs/adr/0020).

A completion is asked again with the text behind its prompt, a chat with the text as the assistant's own last message.
"""

from typing import Any

import msgspec
from msgspec import UNSET, Raw

from app.generation import Call, Route
from app.wire.edits import set_fields
from app.wire.requests import AnyRequest, ChatRequest, CompletionRequest, Sampled

COMPLETION_TOKENS = 16
"""Of a completion that names no limit, at every engine."""

_UNHINDERED = frozenset(
    {
        *("model", "user", "stream", "stream_options", "messages", "prompt", "metadata"),
        *("max_tokens", "max_completion_tokens", "n", "best_of", "stop", "seed", "include_stop_str_in_output"),
        *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias"),
        *("allowed_token_ids", "stop_token_ids"),
        *("skip_special_tokens", "spaces_between_special_tokens", "add_special_tokens", "chat_template_kwargs"),
        *("parallel_tool_calls", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"),
    }
)
"""What means the same for the rest of an answer as for all of it, or is looked at one by one. A field that is new
hinders until somebody has thought about it."""

_HARMLESS: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none",),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
"""Values of other fields that ask for nothing."""

_HINDERING: dict[type[AnyRequest], tuple[str, ...]] = {
    kind: tuple(name for name in kind.__struct_fields__ if name not in _UNHINDERED)
    for kind in (ChatRequest, CompletionRequest)
}


def continuable(request: AnyRequest) -> bool:
    """The rest of its answer can be asked for by itself, and is what would have come."""
    if not isinstance(request, Sampled):
        return False
    for name in _HINDERING[type(request)]:
        value = getattr(request, name)
        if value is not None and value is not UNSET and not _is_harmless(name, value):
            return False
    options = request.stream_options
    return (
        not (options is not None and (options.continuous_usage_stats or options.include_obfuscation))
        and (request.n or 1) == (request.best_of or 1) == 1
        and (request.seed is None or request.temperature == 0)
        and not (request.stop and request.include_stop_str_in_output)
        and (not isinstance(request, CompletionRequest) or _text_of(request.prompt) is not None)
    )


def _is_harmless(name: str, value: Any) -> bool:
    if name == "response_format":
        return bool(value.type == "text")
    if name == "logprobs":
        return value is False  # 0 asks a completion for those of its own tokens
    return (isinstance(value, Raw) and bytes(value) == b"null") or value in _HARMLESS.get(name, ())


def _text_of(prompt: Any) -> str | None:
    """Of a prompt that is one text. Tokens cannot be told behind which text belongs."""
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None


def tokens_allowed(call: Call) -> int | None:
    """How many its answer may have; `None`: as many as there is room for."""
    return COMPLETION_TOKENS if call.max_tokens is None and call.route is Route.COMPLETIONS else call.max_tokens


class _Body(msgspec.Struct):
    prompt: Any = None
    messages: list[Raw] = []
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


_body = msgspec.json.Decoder(_Body).decode


def rest_of(call: Call, text: str, tokens: int) -> Call:
    """The same call for what comes after `text`, an answer's beginning of so many `tokens`."""
    body = _body(call.body)
    limits = [name for name in ("max_tokens", "max_completion_tokens") if getattr(body, name) is not None]
    changed: dict[str, Any] = {name: getattr(body, name) - tokens for name in limits}
    if call.route is Route.COMPLETIONS:
        changed |= {"prompt": f"{_text_of(body.prompt)}{text}", "max_tokens": (tokens_allowed(call) or 0) - tokens}
    else:
        said = Raw(msgspec.json.encode({"role": "assistant", "content": text}))
        changed |= {"messages": [*body.messages, said], "add_generation_prompt": False, "continue_final_message": True}
    left = None if call.max_tokens is None else call.max_tokens - tokens
    return msgspec.structs.replace(call, body=set_fields(call.body, **changed), max_tokens=left)
