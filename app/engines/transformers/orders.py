"""From a checked request to what has to be done: prompts, how to sample, when to stop; or why it cannot be done.

What this engine cannot do is refused by name. Nothing that was asked for is quietly left out.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec

from app.engines.transformers.choice import Choice
from app.engines.transformers.job import Job
from app.engines.transformers.model import Loaded
from app.engines.transformers.sampling import Sampling, derived
from app.engines.transformers.text import StopMatcher
from app.errors import ContextTooLong, InvalidRequest
from app.wire.fields import Message, Prompt, Stop
from app.wire.requests import ChatRequest, CompletionRequest, EmbeddingRequest, Sampled, TokenizeRequest

MAX_CHOICES = 8
MAX_PROMPTS = 64
MAX_STOPS = 16
COMPLETION_TOKENS = 16
"""Of a text completion that names no limit, as at OpenAI and vLLM. A chat goes on to the end of the context."""


@dataclass(frozen=True)
class Order:
    """A generation, ready to be put into the batch."""

    prompts: list[list[int]]
    choices: list[Choice]
    stream: bool
    usage_at_end: bool
    usage_always: bool
    token_ids: bool
    logprobs: bool
    tokens_as_ids: bool
    echoes: list[str]
    """What stands before each choice's text (`echo`), by choice."""

    @cached_property
    def by_job(self) -> dict[str, Choice]:
        return {choice.job.id: choice for choice in self.choices}


class Intake:
    """Knows the model, and turns requests into orders."""

    def __init__(self, model: Loaded, context: int) -> None:
        self._model = model
        self._tokens = model.tokens
        self.context = context

    def chat(self, request: ChatRequest, request_id: str) -> Order:
        _refuse(request, _CHAT_LACKS)
        prompt = self.render(request)
        count = None
        if request.logprobs:
            count = request.top_logprobs or 0
        return self._order(request, [prompt], request_id, "messages", count, [""])

    def completions(self, request: CompletionRequest, request_id: str) -> Order:
        _refuse(request, _COMPLETION_LACKS)
        prompts = self.prompts(request.prompt, "prompt", add_special=request.add_special_tokens is not False)
        echoes = [""] * len(prompts)
        if request.echo:
            texts = request.prompt if isinstance(request.prompt, list) else [request.prompt]
            plain = all(isinstance(each, str) for each in texts)
            echoes = [str(each) for each in texts] if plain else [self._tokens.decode(each) for each in prompts]
        return self._order(request, prompts, request_id, "prompt", request.logprobs, echoes)

    def embeddings(self, request: EmbeddingRequest) -> list[list[int]]:
        _refuse(request, _EMBEDDING_LACKS)
        prompts = self.prompts(request.input, "input", add_special=request.add_special_tokens is not False)
        for prompt in prompts:
            if len(prompt) > self.context:
                raise self._too_long(len(prompt), 0, "input")
        return prompts

    def tokenize(self, request: TokenizeRequest) -> list[int]:
        _refuse(request, _TOKENIZE_LACKS)
        if request.messages is not None:
            return self.render(request)
        return self._tokens.encode(request.prompt or "", add_special=request.add_special_tokens is not False)

    def render(self, request: ChatRequest | TokenizeRequest) -> list[int]:
        """The tokens of a conversation."""
        if not self._tokens.can_chat:
            raise InvalidRequest("This model has no chat template: use /v1/completions.", param="messages")
        continued = request.continue_final_message is True
        opened = not continued if request.add_generation_prompt is None else request.add_generation_prompt
        messages = [_plain(message, index) for index, message in enumerate(request.messages or [])]
        if continued and opened:
            raise InvalidRequest(
                "'continue_final_message' needs 'add_generation_prompt': false.", param="continue_final_message"
            )
        if continued and messages[-1]["role"] != "assistant":
            raise InvalidRequest(
                "'continue_final_message' needs a last message by the assistant.", param="continue_final_message"
            )
        switches = request.chat_template_kwargs
        return self._tokens.chat(
            messages,
            add_generation_prompt=opened,
            continue_final_message=continued,
            add_special=request.add_special_tokens is True,
            switches=msgspec.to_builtins(switches),  # without those that nobody said: a template asks what is defined
        )

    def prompts(self, given: Prompt, param: str, *, add_special: bool) -> list[list[int]]:
        """One list of tokens a prompt, whatever form they came in."""
        if isinstance(given, str):
            given = [given]
        if all(isinstance(each, int) for each in given):
            given = [[each for each in given if isinstance(each, int)]]
        if len(given) > MAX_PROMPTS:
            raise InvalidRequest(f"At most {MAX_PROMPTS} prompts fit into one request.", param=param)
        found = [
            self._tokens.encode(each, add_special=add_special) if isinstance(each, str) else self._known(each, param)
            for each in given
            if not isinstance(each, int)
        ]
        if not all(found):
            raise InvalidRequest("A prompt must have at least one token.", param=param)
        return found

    # --- one order ------------------------------------------------------------------------------------------------

    def _order(
        self,
        request: ChatRequest | CompletionRequest,
        prompts: list[list[int]],
        request_id: str,
        param: str,
        logprobs: int | None,
        echoes: list[str],
    ) -> Order:
        count = request.n or 1
        if count > MAX_CHOICES:
            raise InvalidRequest(f"At most {MAX_CHOICES} choices can be asked for.", param="n")
        sampling = self._sampling(request, logprobs)
        stops = _stops(request.stop)
        include = request.include_stop_str_in_output is True
        seed = secrets.randbits(63) if request.seed is None else request.seed
        choices = []
        for place, prompt in enumerate(prompts):
            room = self._room(request, prompt, param)
            if sampling.min_tokens > room:
                raise InvalidRequest("'min_tokens' is larger than the tokens asked for.", param="min_tokens")
            for each in range(count):
                index = place * count + each
                job = Job(
                    id=f"{request_id}-{index}",
                    prompt=prompt,
                    sampling=replace(sampling, seed=derived(seed, each)),
                    max_tokens=room,
                    eos=frozenset() if request.ignore_eos else self._model.eos,
                    stop_ids=frozenset(request.stop_token_ids or ()),
                )
                detokenizer = self._tokens.detokenizer(skip_special=request.skip_special_tokens is not False)
                matcher = StopMatcher(stops, include=include)
                choices.append(Choice(index, job, detokenizer, matcher, include_stop=include))
        options = request.stream_options
        return Order(
            prompts=prompts,
            choices=choices,
            stream=request.stream is True,
            usage_at_end=bool(options and options.include_usage),
            usage_always=bool(options and options.include_usage and options.continuous_usage_stats),
            token_ids=request.return_token_ids is True,
            logprobs=logprobs is not None,
            tokens_as_ids=request.return_tokens_as_token_ids is True,
            echoes=[text for text in echoes for _ in range(count)],
        )

    def _sampling(self, request: Sampled, logprobs: int | None) -> Sampling:
        def given(name: str, otherwise: float) -> float:
            value = getattr(request, name)
            return float(self._model.defaults.get(name, otherwise) if value is None else value)

        minimum = request.min_tokens or 0
        if minimum < 0:
            raise InvalidRequest("'min_tokens' cannot be negative.", param="min_tokens")
        bias = [(int(token), value) for token, value in (request.logit_bias or {}).items()]
        stop_ids = self._known(request.stop_token_ids or [], "stop_token_ids")
        self._known([token for token, _ in bias], "logit_bias")
        return Sampling(
            temperature=given("temperature", 1.0),
            top_p=given("top_p", 1.0),
            top_k=max(0, int(given("top_k", 0))),
            min_p=given("min_p", 0.0),
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            repetition_penalty=given("repetition_penalty", 1.0),
            logit_bias=tuple(bias),
            logprobs=logprobs,
            min_tokens=minimum,
            ends=frozenset(stop_ids) | (frozenset() if request.ignore_eos else self._model.eos),
        )

    def _room(self, request: ChatRequest | CompletionRequest, prompt: list[int], param: str) -> int:
        """How many tokens may be produced. Too many is refused here, before anything is queued."""
        asked = request.output_limit()
        if asked is None and isinstance(request, CompletionRequest):
            asked = min(COMPLETION_TOKENS, max(1, self.context - len(prompt)))
        if len(prompt) + (asked or 1) > self.context:
            raise self._too_long(len(prompt), asked or 1, param)
        return asked or self.context - len(prompt)

    def _too_long(self, prompt: int, asked: int, param: str) -> ContextTooLong:
        wanted = f" and {asked} to be generated" if asked else ""
        return ContextTooLong(
            f"This model's context holds {self.context} tokens; the request has {prompt} in the prompt{wanted}.",
            param=param,
        )

    def _known(self, ids: Sequence[int], param: str) -> list[int]:
        if ids and max(ids) >= self._tokens.size:
            raise InvalidRequest(f"A token id is beyond the vocabulary of {self._tokens.size}.", param=param)
        return list(ids)


def _plain(message: Message, index: int) -> dict[str, str]:
    """A message as the template takes it: role and text."""
    param = f"messages[{index}]"
    if message.tool_calls or message.function_call or message.role in ("tool", "function"):
        raise InvalidRequest("This engine does not call tools.", param=f"{param}.role", code="unsupported_parameter")
    content = message.content
    if isinstance(content, list):
        for place, part in enumerate(content):
            if part.type != "text" or part.text is None:
                raise InvalidRequest(
                    "This engine takes text only.", param=f"{param}.content[{place}]", code="unsupported_parameter"
                )
        content = "".join(part.text or "" for part in content)
    # what OpenAI calls developer, models' templates call system
    return {"role": "system" if message.role == "developer" else message.role, "content": content or ""}


def _stops(stop: Stop | None) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or [])


# --- what this engine lacks: a field, and what in it asks for nothing ------------------------------------------------

Harmless = Callable[[Any], bool]


def _only(*values: Any) -> Harmless:
    return lambda value: any(value == each for each in values)


_SAMPLED_LACKS: dict[str, Harmless] = {
    "best_of": _only(1),
    "response_format": lambda value: value.type == "text",
    "length_penalty": _only(1.0),
    "allowed_token_ids": _only([]),
    "bad_words": _only([]),
    "truncate_prompt_tokens": _only(),
    "prompt_logprobs": _only(),
    "logprob_token_ids": _only(),
    "thinking_token_budget": _only(),
    "use_beam_search": _only(False),
    "structured_outputs": _only(),
}
_CHAT_LACKS = _SAMPLED_LACKS | {
    "tools": _only([]),
    "tool_choice": _only("none"),
    "prediction": _only(),
    "audio": _only(),
    "modalities": _only(["text"]),
    "echo": _only(False),
}
_COMPLETION_LACKS = _SAMPLED_LACKS | {"suffix": _only("")}
_EMBEDDING_LACKS: dict[str, Harmless] = {
    "dimensions": _only(),
    "truncate_prompt_tokens": _only(),
    "normalize": _only(True),
}
_TOKENIZE_LACKS: dict[str, Harmless] = {"tools": _only([])}


def _refuse(request: msgspec.Struct, lacks: dict[str, Harmless]) -> None:
    for name in _given(request, lacks):
        raise InvalidRequest(f"This engine does not offer '{name}'.", param=name, code="unsupported_parameter")
    if isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None:
        text = "This engine gives no logprobs of a prompt: ask for 'echo' or for 'logprobs'."
        raise InvalidRequest(text, param="logprobs", code="unsupported_parameter")


def _given(request: msgspec.Struct, lacks: dict[str, Harmless]) -> Iterator[str]:
    for name, harmless in lacks.items():
        value = getattr(request, name)
        absent = value in (None, msgspec.UNSET) or (isinstance(value, msgspec.Raw) and bytes(value) == b"null")
        if not absent and not harmless(value):
            yield name
