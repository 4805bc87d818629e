"""The bodies a client may send, one struct an endpoint.

Unknown fields are refused by name: an engine obeys fields that the gateway does not know (`api_base`, `chat_template`,
`kv_transfer_params`, …), and some of them are dangerous. A key that stands twice counts as its last value, here as in
every engine.
"""

from typing import Any, Literal

from msgspec import UNSET, Raw

from app.generation import Route
from app.wire.fields import (
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
    Side,
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
    truncation_side: Side | None = None
    prompt_logprobs: PromptLogprobs | None = None
    logprob_token_ids: StopIds | None = None
    thinking_token_budget: Count | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    use_beam_search: bool | None = None
    structured_outputs: Opaque = UNSET

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
    """OpenAI's words first and vLLM's after, without what needs an engine's memory: a second call may meet another
    replica."""

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

    seed: Seed | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None
    logit_bias: LogitBias | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: TemplateSwitches | None = None
    structured_outputs: Opaque = UNSET

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
    cache_control: Opaque = UNSET
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
