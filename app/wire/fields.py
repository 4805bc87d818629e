"""The types of request fields: what may stand in them, said once."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

MAX_CHOICES = 128
MAX_PROMPTS = 2_048

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Text = Annotated[str, Meta(max_length=4_096)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
TokenCount = Annotated[int, Meta(ge=1, le=10_000_000)]
TokenId = Annotated[int, Meta(ge=0, le=10_000_000)]
Count = Annotated[int, Meta(ge=0, le=10_000_000)]
Truncation = Annotated[int, Meta(ge=-1, le=10_000_000)]
Side = Literal["left", "right"]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(gt=0, le=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(ge=0.01, le=10)]
"""Any closer to 0 it divides to infinity, in every engine."""
TopK = Annotated[int, Meta(ge=-1, le=1_000_000)]
Exponent = Annotated[float, Meta(ge=-10, le=10)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
PromptLogprobs = Annotated[int, Meta(ge=-1, le=20)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
StopText = Annotated[str, Meta(min_length=1, max_length=1_024)]
StopSequences = Annotated[list[StopText], Meta(max_length=16)]
Stop = StopText | StopSequences
Words = Annotated[list[Text], Meta(max_length=1_024)]
Names = Annotated[list[Text], Meta(max_length=16)]
ToolChoice = Literal["none", "auto", "required"] | dict[str, Raw]
StopIds = Annotated[list[TokenId], Meta(max_length=256)]
LogitBias = Annotated[
    dict[Annotated[str, Meta(pattern=r"^[0-9]{1,8}$(?!\n)")], Annotated[float, Meta(ge=-100, le=100)]],
    Meta(max_length=1_024),
]
TokenIds = Annotated[list[TokenId], Meta(min_length=1)]
Prompt = str | Annotated[list[str | TokenId | TokenIds], Meta(min_length=1, max_length=1_000_000)]
"""Text, texts, token ids, or lists of them; that a list holds one kind only is checked after decoding."""
Metadata = Annotated[dict[Annotated[str, Meta(max_length=64)], Text], Meta(max_length=16)]


Opaque = Raw | UnsetType
"""JSON that is the engine's business."""


class Strict(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A body or a part of one: what is not listed is refused, because an engine might obey it."""


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class TemplateSwitches(Strict):
    """The chat-template arguments that models document. No others pass: some make an engine work for minutes."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    thinking_budget: Truncation | None = None
    preserve_thinking: bool | None = None
    clear_thinking: bool | None = None
    reasoning_effort: Text | None = None


class Media(msgspec.Struct):
    """Only the address matters here; the rest of the part is the engine's."""

    url: str


class File(Strict):
    """By what it holds; a file's id or address would be something to look up."""

    file_data: str | None = None
    filename: Text | None = None


class Part(Strict):
    """A piece of a message's content, of any kind; what is not listed might be one more way to name an address."""

    type: Annotated[str, Meta(max_length=64)]
    text: str | None = None
    image_url: Media | str | None = None
    video_url: Media | str | None = None
    audio_url: Media | str | None = None
    input_audio: dict[str, str] | None = None
    file: File | None = None
    refusal: str | None = None
    thinking: Opaque = UNSET
    uuid: Text | None = None
    cache_control: Opaque = UNSET
    prompt_cache_breakpoint: Opaque = UNSET

    def media(self) -> list[str]:
        """Addresses. A file's data may also be bare base64, which has no colon."""
        found = (self.image_url, self.video_url, self.audio_url)
        data = self.file.file_data if self.file is not None else None
        return [
            *(each if isinstance(each, str) else each.url for each in found if each is not None),
            *([data] if data is not None and ":" in data else []),
        ]


class FunctionCall(msgspec.Struct):
    name: Text
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    function: FunctionCall
    id: Text | None = None
    type: Text | None = None


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Meta(min_length=1)] | None = None
    name: Text | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=1_024)] | None = None
    tool_call_id: Text | None = None
    function_call: FunctionCall | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    annotations: Opaque = UNSET
    audio: Opaque = UNSET
    parsed: Opaque = UNSET
    provider_specific_fields: Opaque = UNSET


Messages = Annotated[list[Message], Meta(min_length=1, max_length=10_000)]


class Function(msgspec.Struct):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$(?!\n)")]
    description: str | None = None
    parameters: dict[str, Raw] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    type: Literal["function"]
    function: Function


Tools = Annotated[list[Tool], Meta(max_length=1_024)]
HostedTools = Annotated[list[dict[str, Raw]], Meta(max_length=1_024)]
"""In the forms of Responses and Messages, where a tool may also be a service."""


class ResponseFormat(msgspec.Struct):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: dict[str, Raw] | None = None
    structures: Opaque = UNSET
    format: Opaque = UNSET


class Turn(Strict):
    """A message in Anthropic's form; its blocks are looked at in `media`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


Turns = Annotated[list[Turn], Meta(min_length=1, max_length=10_000)]
