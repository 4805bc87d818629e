"""Sampling parameters, as vLLM's `SamplingParams` or as a dict of the same names, in the words of the wire.

vLLM is not imported: an object counts by its attributes.
"""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Protocol

Fields = dict[str, Any]


class SamplingParams(Protocol):
    """What is looked at in an object: `vllm.SamplingParams` has these, and more."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int | None


Sampling = Mapping[str, Any] | SamplingParams | None

MAX_TOKENS = 16
"""vLLM's default, for texts and chats alike. None, said on purpose, is the rest of the context."""

DEFAULTS: Fields = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": MAX_TOKENS,
}
"""Sent always: where a request says nothing, a server takes what the model's makers recommend, `SamplingParams` not."""

_SAME_ON_THE_WIRE = (
    "n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop stop_token_ids "
    "bad_words include_stop_str_in_output ignore_eos max_tokens min_tokens skip_special_tokens "
    "spaces_between_special_tokens truncate_prompt_tokens logit_bias allowed_token_ids thinking_token_budget"
).split()
_RENAMED = {"structured_outputs": "structured_outputs", "extra_args": "vllm_xargs"}
_KNOWN = {*_SAME_ON_THE_WIRE, *_RENAMED, "logprobs"}

_INTERNAL = {"output_kind", "detokenize", "output_text_buffer_length", "flat_logprobs", "skip_clone"}
"""Of an engine inside one's own process: how results are handed over, not what they are."""


def chat_fields(params: Sampling) -> Fields:
    fields, logprobs = _fields(params)
    if logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": logprobs, "return_tokens_as_token_ids": True}
    return fields


def text_fields(params: Sampling) -> Fields:
    fields, logprobs = _fields(params)
    if logprobs is not None:
        fields |= {"logprobs": logprobs, "return_tokens_as_token_ids": True}
    return fields


def _fields(params: Sampling) -> tuple[Fields, int | None]:
    """Everything but the logprobs, which each endpoint calls by other names."""
    if params is None:
        return {"max_tokens": MAX_TOKENS}, None
    given = dict(params) if isinstance(params, Mapping) else _told(params)
    if strange := sorted(given.keys() - _KNOWN):
        raise ValueError(f"These sampling parameters cannot be sent to a server: {', '.join(strange)}.")
    fields = DEFAULTS | {name: given[name] for name in _SAME_ON_THE_WIRE if name in given}
    fields |= {wire: _plain(given[name]) for name, wire in _RENAMED.items() if given.get(name) is not None}
    said = {name: value for name, value in fields.items() if value is not None or name == "max_tokens"}
    return said, given.get("logprobs")


def _told(params: object) -> Fields:
    """What an object says beyond what every object of its kind says."""
    names = getattr(params, "__struct_fields__", None) or tuple(vars(params))
    kind: Any = type(params)
    plain = kind()
    return {
        name: value
        for name in names
        if not name.startswith("_") and name not in _INTERNAL
        if (value := getattr(params, name)) != getattr(plain, name) or name in DEFAULTS
    }


def _plain(value: Any) -> Any:
    """A group of options, without those that are open."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {name: each for name, each in asdict(value).items() if each is not None and not name.startswith("_")}
