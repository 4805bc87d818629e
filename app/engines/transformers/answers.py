"""The bytes of an answer, in vLLM's shapes: whole, or as events."""

import base64
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from app.engines.transformers.choice import Choice, Delta
from app.engines.transformers.orders import Order
from app.engines.transformers.sampling import Logprobs
from app.engines.transformers.tokens import Tokens
from app.wire.sse import event


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class UsageBody(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob] = []


class ChatLogprobs(msgspec.Struct):
    content: list[ChosenLogprob]


class CompletionLogprobs(msgspec.Struct):
    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class MessageBody(msgspec.Struct):
    content: str
    role: str = "assistant"
    refusal: None = None
    tool_calls: list[None] = []


class ChatChoice(msgspec.Struct):
    index: int
    message: MessageBody
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: list[int] | None


class DeltaBody(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, omit_defaults=True):
    index: int
    delta: DeltaBody
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | msgspec.UnsetType | None = msgspec.UNSET
    token_ids: list[int] | None = None


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_logprobs: None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Answer(msgspec.Struct):
    """Of either endpoint, whole."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: UsageBody
    system_fingerprint: None = None
    prompt_logprobs: None = None
    prompt_token_ids: list[int] | None = None


class Chunk(msgspec.Struct, omit_defaults=True):
    """One event of either endpoint."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Any]
    usage: UsageBody | None = None
    prompt_token_ids: list[int] | None = None


class Writer:
    """Writes the answer to one order. What differs between the two endpoints is in the subclasses."""

    whole: str
    chunk: str

    def __init__(self, order: Order, id_: str, created: int, model: str, tokens: Tokens) -> None:
        self.order, self.id, self.created, self.model, self.tokens = order, id_, created, model, tokens
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}

    def answer(self) -> bytes:
        choices = [self._choice(choice, choice.show()) for choice in self.order.choices]
        prompt = self.order.prompts[0] if self._names_prompt and self.order.token_ids else None
        usage = self.usage()
        body = Answer(self.id, self.whole, self.created, self.model, choices, usage, prompt_token_ids=prompt)
        return msgspec.json.encode(body)

    def events(self, choice: Choice) -> bytes:
        """What there is to tell of this choice now, possibly nothing."""
        silent = not (choice.visible or choice.finish or self.order.logprobs or self.order.token_ids)
        if silent and choice.index in self._begun:
            return b""
        out = b""
        prompt = None
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            prompt = choice.job.prompt if self.order.token_ids else None
            out = self._opening(choice, prompt)
            if silent:
                return out
        return out + self._event(self._piece(choice, choice.show(), prompt))

    def usage_event(self) -> bytes:
        return event(Chunk(self.id, self.chunk, self.created, self.model, [], usage=self.usage()))

    def usage(self) -> UsageBody:
        order = self.order
        prompt = sum(map(len, order.prompts))
        produced = sum(choice.produced for choice in order.choices)
        per_prompt = len(order.choices) // len(order.prompts)
        cached = sum(choice.job.cached_tokens for choice in order.choices[::per_prompt])
        return UsageBody(prompt, prompt + produced, produced, PromptTokensDetails(cached))

    _names_prompt = False

    def _usage_of(self, choice: Choice) -> UsageBody:
        """In a choice's own events: what vLLM tells there is not that of all."""
        prompt, produced = len(choice.job.prompt), choice.produced
        return UsageBody(prompt, prompt + produced, produced, PromptTokensDetails(choice.job.cached_tokens))

    def _event(self, choice: Any, prompt: list[int] | None = None) -> bytes:
        usage = self._usage_of(self.order.choices[choice.index]) if self.order.usage_always else None
        chunk = Chunk(self.id, self.chunk, self.created, self.model, [choice], usage, prompt)
        return event(chunk)

    def _opening(self, choice: Choice, prompt: list[int] | None) -> bytes:
        return b""

    def _choice(self, choice: Choice, delta: Delta) -> Any:
        raise NotImplementedError

    def _piece(self, choice: Choice, delta: Delta, prompt: list[int] | None) -> Any:
        raise NotImplementedError

    def _text_of(self, id_: int) -> str:
        if self.order.tokens_as_ids:
            return f"token_id:{id_}"
        return self.tokens.bytes_of(id_).decode(errors="replace")


class ChatWriter(Writer):
    whole, chunk = "chat.completion", "chat.completion.chunk"
    _names_prompt = True

    def _opening(self, choice: Choice, prompt: list[int] | None) -> bytes:
        return self._event(ChunkChoice(choice.index, DeltaBody("assistant", ""), None, None), prompt)

    def _choice(self, choice: Choice, delta: Delta) -> ChatChoice:
        return ChatChoice(
            choice.index,
            MessageBody(delta.text),
            self._logprobs(delta),
            choice.finish,
            choice.stop_reason,
            delta.tokens if self.order.token_ids else None,
        )

    def _piece(self, choice: Choice, delta: Delta, prompt: list[int] | None) -> ChunkChoice:
        return ChunkChoice(
            choice.index,
            DeltaBody(content=delta.text),
            self._logprobs(delta),
            choice.finish,
            choice.stop_reason if choice.finish else msgspec.UNSET,
            delta.tokens if self.order.token_ids else None,
        )

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if not self.order.logprobs:
            return None
        return ChatLogprobs([self._chosen(id_, logprobs) for id_, logprobs in delta.logprobs])

    def _chosen(self, id_: int, logprobs: Logprobs) -> ChosenLogprob:
        top = [TokenLogprob(self._text_of(each), _shown(value), self._bytes(each)) for each, value in logprobs.top]
        return ChosenLogprob(self._text_of(id_), _shown(logprobs.chosen), self._bytes(id_), top)

    def _bytes(self, id_: int) -> list[int]:
        return list(self.tokens.bytes_of(id_))


class CompletionWriter(Writer):
    whole = chunk = "text_completion"

    def _choice(self, choice: Choice, delta: Delta) -> TextChoice:
        return TextChoice(
            choice.index,
            self.order.echoes[choice.index] + delta.text,
            self._logprobs(choice, delta),
            choice.finish,
            choice.stop_reason,
            prompt_token_ids=choice.job.prompt if self.order.token_ids else None,
            token_ids=delta.tokens if self.order.token_ids else None,
        )

    def _opening(self, choice: Choice, prompt: list[int] | None) -> bytes:
        echo = self.order.echoes[choice.index]
        return self._event(TextChoice(choice.index, echo, None, None, None)) if echo else b""

    def _piece(self, choice: Choice, delta: Delta, prompt: list[int] | None) -> TextChoice:
        return TextChoice(
            choice.index,
            delta.text,
            self._logprobs(choice, delta),
            choice.finish,
            choice.stop_reason,
            prompt_token_ids=prompt,
            token_ids=delta.tokens if self.order.token_ids else None,
        )

    def _logprobs(self, choice: Choice, delta: Delta) -> CompletionLogprobs | None:
        if not self.order.logprobs:
            return None
        found = CompletionLogprobs([], [], [], [])
        offset = self._offsets.get(choice.index, 0)
        for id_, logprobs in delta.logprobs:
            text = self._text_of(id_)
            found.text_offset.append(offset)
            found.tokens.append(text)
            found.token_logprobs.append(_shown(logprobs.chosen))
            top = [(self._text_of(each), _shown(value)) for each, value in logprobs.top]
            found.top_logprobs.append({text: _shown(logprobs.chosen)} | dict(reversed(top)))
            offset += len(text)
        self._offsets[choice.index] = offset
        return found


def _shown(logprob: float) -> float:
    """JSON has no minus infinity; vLLM and OpenAI write this instead."""
    return max(logprob, -9999.0)


def models_body(names: Sequence[str], created: int, context: int) -> bytes:
    """One model; under each of its names."""
    models = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "gllm",
            "root": names[0],
            "parent": None,
            "max_model_len": context,
        }
        for name in names
    ]
    return msgspec.json.encode({"object": "list", "data": models})


def embeddings_body(
    model: str, id_: str, created: int, vectors: list[list[float]], tokens: int, *, packed: bool
) -> bytes:
    def shown(vector: list[float]) -> str | list[float]:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if packed else vector

    data = [{"index": index, "object": "embedding", "embedding": shown(each)} for index, each in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
    return msgspec.json.encode(
        {"id": id_, "object": "list", "created": created, "model": model, "data": data, "usage": usage}
    )


def tokenize_body(ids: list[int], context: int, names: list[str] | None) -> bytes:
    return msgspec.json.encode({"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": names})
