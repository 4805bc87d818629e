"""Sampling parameters, from vLLM's words to the wire's."""

from dataclasses import dataclass

import pytest

from gllm.service.sampling import DEFAULTS, chat_fields, text_fields
from tests.service.vllm_stub import SamplingParams


def test_nothing_said_leaves_all_to_the_model_but_the_length() -> None:
    assert chat_fields(None) == text_fields(None) == {"max_tokens": 16}


def test_a_dict_means_what_an_object_with_the_same_words_means() -> None:
    said = {"temperature": 0.5, "stop": ["\n"], "seed": 7, "n": 2, "logprobs": 3, "logit_bias": {5: 1.0}}
    assert chat_fields(said) == chat_fields(SamplingParams(**said))  # type: ignore[arg-type]
    assert text_fields({}) == text_fields(SamplingParams()) == DEFAULTS


def test_an_object_is_left_as_it_was() -> None:
    params = SamplingParams(stop="x", temperature=0.2)
    chat_fields(params)
    assert params == SamplingParams(stop="x", temperature=0.2)


def test_no_limit_is_said_and_not_left_out() -> None:
    assert text_fields({"max_tokens": None})["max_tokens"] is None


@pytest.mark.parametrize("count", [0, 5])
def test_each_endpoint_has_its_own_words_for_logprobs(count: int) -> None:
    asked = {"logprobs": count}
    assert text_fields(asked) == DEFAULTS | {"logprobs": count, "return_tokens_as_token_ids": True}
    chat = {"logprobs": True, "top_logprobs": count, "return_tokens_as_token_ids": True}
    assert chat_fields(asked) == DEFAULTS | chat


def test_a_group_of_options_is_sent_without_those_that_are_open() -> None:
    @dataclass
    class Structured:
        regex: str | None = None
        json: str | None = None
        _backend: str | None = "auto"

    sent = text_fields(SamplingParams(structured_outputs=Structured(regex="a+"), extra_args={"x": 1}))
    assert sent["structured_outputs"] == {"regex": "a+"}
    assert sent["vllm_xargs"] == {"x": 1}


def test_what_a_server_cannot_be_told_is_refused_and_not_forgotten() -> None:
    with pytest.raises(ValueError, match=r"cannot be sent to a server: max_token, tempo\."):
        text_fields({"max_token": 5, "tempo": 1})
    with pytest.raises(ValueError, match="prompt_logprobs"):
        text_fields(SamplingParams(prompt_logprobs=1))
