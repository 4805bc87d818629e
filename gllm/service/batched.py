"""Batches of chats and prompts, the way both the client and the service take them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from gllm.service.output import ResponseOutput, chat_outputs, text_outputs
from gllm.service.sampling import Fields, Sampling, chat_fields, text_fields

Conversation = Sequence[Mapping[str, Any]]
Outputs = list[list[ResponseOutput]]
Texts = list[list[str]]


@dataclass(frozen=True)
class Question:
    """One item of a batch, before it is known which model answers it."""

    path: str
    fields: Fields
    read: Callable[[bytes], list[ResponseOutput]]

    @property
    def sequences(self) -> int:
        return int(self.fields.get("n") or 1)


class Batched(ABC):
    @overload
    def chat(
        self,
        conversations: Sequence[Conversation],
        sampling_params: Sampling = None,
        return_extra: Literal[False] = False,
    ) -> Texts: ...
    @overload
    def chat(
        self, conversations: Sequence[Conversation], sampling_params: Sampling = None, *, return_extra: Literal[True]
    ) -> Outputs: ...
    @overload
    def chat(
        self, conversations: Sequence[Conversation], sampling_params: Sampling, return_extra: bool
    ) -> Texts | Outputs: ...
    def chat(
        self, conversations: Sequence[Conversation], sampling_params: Sampling = None, return_extra: bool = False
    ) -> Texts | Outputs:
        """For each conversation, in order, its `n` answers: texts, or with `return_extra` texts and logprobs.

        Without `sampling_params` the model's makers' are taken, and at most 16 tokens, as `vllm.LLM` does.
        """
        if any(isinstance(each, str | Mapping) for each in conversations):
            raise TypeError("`conversations` is a list of conversations, each a list of messages.")
        fields = chat_fields(sampling_params)
        questions = [
            Question("/v1/chat/completions", {**fields, "messages": list(each)}, chat_outputs) for each in conversations
        ]
        return _shaped(self._outputs(questions), return_extra)

    @overload
    def generate(
        self, prompts: Sequence[str], sampling_params: Sampling = None, return_extra: Literal[False] = False
    ) -> Texts: ...
    @overload
    def generate(
        self, prompts: Sequence[str], sampling_params: Sampling = None, *, return_extra: Literal[True]
    ) -> Outputs: ...
    @overload
    def generate(self, prompts: Sequence[str], sampling_params: Sampling, return_extra: bool) -> Texts | Outputs: ...
    def generate(
        self, prompts: Sequence[str], sampling_params: Sampling = None, return_extra: bool = False
    ) -> Texts | Outputs:
        """For each prompt, in order, its `n` continuations, as `chat` gives answers."""
        if isinstance(prompts, str):
            raise TypeError("`prompts` is a list of texts.")
        fields = text_fields(sampling_params)
        questions = [Question("/v1/completions", {**fields, "prompt": each}, text_outputs) for each in prompts]
        return _shaped(self._outputs(questions), return_extra)

    @abstractmethod
    def _outputs(self, questions: Sequence[Question]) -> Outputs: ...


def _shaped(outputs: Outputs, return_extra: bool) -> Texts | Outputs:
    return outputs if return_extra else [[each.text for each in answers] for answers in outputs]
