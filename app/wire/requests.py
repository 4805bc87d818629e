"""The bodies a client may send, one struct an endpoint, and the one way from bytes to a checked struct.

Unknown fields are refused by name: an engine obeys fields that the gateway does not know (`api_base`, `chat_template`,
`kv_transfer_params`, …), and some of them are dangerous. A key that stands twice counts as its last value, here as in
every engine.
"""

import re
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import msgspec
from msgspec import UNSET, Raw

from app.errors import InvalidRequest
from app.generation import Route
from app.wire.fields import (
    MAX_PROMPTS,
    Alternatives,
    Choices,
    Count,
    Exponent,
    Fraction,
    HostedTools,
    LogitBias,
    Messages,
    Metadata,
    Name,
    Names,
    Opaque,
    Penalty,
    Prompt,
    PromptLogprobs,
    Repetition,
    ResponseFormat,
    Seed,
    Share,
    Stop,
    StopIds,
    StopSequences,
    StreamOptions,
    Strict,
    Temperature,
    TemplateSwitches,
    Text,
    TokenCount,
    TokenIds,
    ToolChoice,
    Tools,
    TopK,
    TopLogprobs,
    Truncation,
    Turns,
    Words,
)
from app.wire.media import check_media, elsewhere, is_inside
from app.wire.schemas import check_schema


class Request(Strict):
    """What every body has."""

    model: Name | None = None
    user: Text | None = None


class Sampled(Request):
    """What every body has that asks for tokens, in OpenAI's words first and vLLM's after."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    n: Choices | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    best_of: Choices | None = None
    response_format: ResponseFormat | None = None
    metadata: Metadata | None = None

    top_k: TopK | None = None
    min_p: Fraction | None = None
    repetition_penalty: Repetition | None = None
    length_penalty: Exponent | None = None
    min_tokens: Count | None = None
    stop_token_ids: StopIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    allowed_token_ids: StopIds | None = None
    bad_words: Words | None = None
    truncate_prompt_tokens: Truncation | None = None
    prompt_logprobs: PromptLogprobs | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    use_beam_search: bool | None = None
    structured_outputs: Opaque = UNSET
    guided_json: Opaque = UNSET
    guided_regex: Text | None = None
    guided_choice: Alternatives | None = None
    guided_grammar: Text | None = None

    def output_limit(self) -> int | None:
        return self.max_tokens


class ChatRequest(Sampled, kw_only=True):
    messages: Messages
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Text | None = None
    thinking_token_budget: Count | None = None
    include_reasoning: bool | None = None
    verbosity: Text | None = None
    prediction: Opaque = UNSET
    audio: Opaque = UNSET
    modalities: Names | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None
    prompt_cache_options: Opaque = UNSET

    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateSwitches | None = None

    def output_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(Sampled, kw_only=True):
    prompt: Prompt
    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    suffix: str | None = None


class EmbeddingRequest(Request, kw_only=True):
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: TokenCount | None = None
    truncate_prompt_tokens: Truncation | None = None
    add_special_tokens: bool | None = None
    normalize: bool | None = None


class ResponsesRequest(Request, kw_only=True):
    """Without what needs an engine's memory: a second call may meet another replica."""

    input: str | list[dict[str, Any]]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    top_logprobs: TopLogprobs | None = None
    tools: HostedTools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: TokenCount | None = None
    reasoning: Opaque = UNSET
    text: Opaque = UNSET
    truncation: Text | None = None
    include: Names | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None
    prompt_cache_options: Opaque = UNSET

    def output_limit(self) -> int | None:
        return self.max_output_tokens


class MessagesRequest(Strict, kw_only=True):
    """Anthropic's form, for the engines that offer it."""

    messages: Turns
    max_tokens: TokenCount
    model: Name | None = None
    stream: bool | None = None
    system: str | list[dict[str, Any]] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    stop_sequences: StopSequences | None = None
    tools: HostedTools | None = None
    tool_choice: dict[str, Raw] | None = None
    thinking: Opaque = UNSET
    metadata: Metadata | None = None
    service_tier: Text | None = None
    context_management: Opaque = UNSET
    output_config: Opaque = UNSET

    def output_limit(self) -> int | None:
        return self.max_tokens


class TokenizeRequest(Request, kw_only=True):
    prompt: str | None = None
    messages: Messages | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    tools: Tools | None = None
    chat_template_kwargs: TemplateSwitches | None = None


class DetokenizeRequest(Request, kw_only=True):
    tokens: TokenIds


AnyRequest = (
    ChatRequest
    | CompletionRequest
    | EmbeddingRequest
    | ResponsesRequest
    | MessagesRequest
    | TokenizeRequest
    | DetokenizeRequest
)

REQUESTS: dict[Route, type[AnyRequest]] = {
    Route.CHAT: ChatRequest,
    Route.COMPLETIONS: CompletionRequest,
    Route.EMBEDDINGS: EmbeddingRequest,
    Route.RESPONSES: ResponsesRequest,
    Route.MESSAGES: MessagesRequest,
    Route.TOKENIZE: TokenizeRequest,
    Route.DETOKENIZE: DetokenizeRequest,
}

_DECODE: dict[Route, Callable[[bytes], AnyRequest]] = {
    route: msgspec.json.Decoder(struct).decode for route, struct in REQUESTS.items()
}


def parse(route: Route, body: bytes) -> AnyRequest:
    """The checked request, or `InvalidRequest` that names the field."""
    try:
        if not body.isascii():
            str(body, "utf-8")  # msgspec steps over a field kept as Raw without looking at its encoding
        request = _DECODE[route](body)
    except msgspec.ValidationError as error:
        _refuse_value(str(error))
    except msgspec.DecodeError:
        raise InvalidRequest("The body is not valid JSON.", code="invalid_json") from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.", code="nesting_too_deep") from None
    match request:
        case ChatRequest():
            _check_sampled(request)
            _check_messages(request.messages)
            _check_tools(request.tools)
            if request.top_logprobs and not request.logprobs:
                raise InvalidRequest(
                    "'top_logprobs' needs 'logprobs': true.", param="top_logprobs", code="invalid_value"
                )
        case CompletionRequest():
            _check_sampled(request)
            _check_prompt(request.prompt, "prompt")
        case EmbeddingRequest():
            _check_prompt(request.input, "input")
        case ResponsesRequest():
            check_media(request.input, "input")
            check_schema(request.text, "text")
            _check_hosted_tools(request.tools)
        case MessagesRequest():
            check_media([turn.content for turn in request.messages], "messages")
            check_media(request.system, "system")
            check_schema(request.output_config, "output_config")
            _check_hosted_tools(request.tools)
        case TokenizeRequest():
            if (request.prompt is None) == (request.messages is None):
                raise InvalidRequest("Give either 'prompt' or 'messages'.", param="prompt", code="invalid_value")
            _check_messages(request.messages or [])
            _check_tools(request.tools)
        case DetokenizeRequest():
            pass
    return request


_AT = re.compile(r" - at (?:`\w+` in )?`\$\.?(?P<path>[\w.\[\]]{0,128})`$", re.ASCII)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`$")
"""Names are the client's own words and may look like a path; a true path is short and comes last."""


def _refuse_value(text: str) -> NoReturn:
    """Turn msgspec's sentence into ours: which field, and what was expected of it."""
    at = _AT.search(text)
    path = at["path"] if at else ""
    reason = text[: at.start()] if at else text
    if unknown := _UNKNOWN.match(reason):
        param = _join(path, unknown["name"])
        raise InvalidRequest("This field is not accepted here.", param=param, code="unsupported_parameter")
    if missing := _MISSING.match(reason):
        param = _join(path, missing["name"])
        raise InvalidRequest("This field is required.", param=param, code="missing_required_parameter")
    expected = reason.replace("`", "'").replace("array", "list")
    if " matching regex " in expected:
        expected = "This is not in the accepted form"
    elif expected.startswith("Invalid enum value"):  # msgspec repeats the value here, which may be long and is not ours
        expected = "This is not one of the accepted values"
    code = "invalid_type" if ", got" in reason else "invalid_value"
    raise InvalidRequest(f"{expected}.", param=path[:64] or None, code=code)


def _join(path: str, name: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in name[:64])
    return f"{path}.{shown}" if path else shown


def _check_sampled(request: ChatRequest | CompletionRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' needs 'stream': true.", param="stream_options", code="invalid_value")
    check_schema(request.structured_outputs, "structured_outputs")
    check_schema(request.guided_json, "guided_json")
    if (wanted := request.response_format) is not None:
        for raw in (*(wanted.json_schema or {}).values(), wanted.structures, wanted.format):
            check_schema(raw, "response_format")


def _check_tools(tools: Tools | None) -> None:
    for index, tool in enumerate(tools or ()):
        if tool.function.parameters:
            check_schema(Raw(msgspec.json.encode(tool.function.parameters)), f"tools[{index}].function.parameters")


def _check_hosted_tools(tools: HostedTools | None) -> None:
    for index, tool in enumerate(tools or ()):
        for name, raw in tool.items():
            if name in ("server_url", "connector_id", "authorization", "headers"):
                text = "Tools that live elsewhere are not called on behalf of a request."
                raise InvalidRequest(text, param=f"tools[{index}].{name}", code="unsupported_parameter")
            check_schema(raw, f"tools[{index}]")


def _check_prompt(prompt: Prompt, param: str) -> None:
    if isinstance(prompt, str):
        return
    kinds = set(map(type, prompt))
    if len(kinds) > 1:
        raise InvalidRequest(
            "A list holds one kind: texts, token ids, or lists of token ids.", param=param, code="invalid_type"
        )
    if kinds != {int} and len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"At most {MAX_PROMPTS} prompts fit into one request.", param=param, code="invalid_value")


def _check_messages(messages: Messages) -> None:
    for index, message in enumerate(messages):
        content = message.content
        if message.role == "tool" and message.tool_call_id is None:
            param = f"messages[{index}].tool_call_id"
            raise InvalidRequest("This field is required.", param=param, code="missing_required_parameter")
        if isinstance(content, str):
            continue
        if content is None:
            if message.role != "assistant":
                raise InvalidRequest("Content is required.", param=f"messages[{index}].content", code="invalid_value")
            continue
        for place, part in enumerate(content):
            if not all(map(is_inside, part.media())):
                raise elsewhere(f"messages[{index}].content[{place}]")
