"""What is asked for is done or refused by name: nothing is quietly left out."""

import json
from typing import Any

import pytest

from app.engines.transformers.model import Loaded
from app.engines.transformers.orders import Intake, Order
from app.engines.transformers.tokens import Tokens
from app.errors import ContextTooLong, InvalidRequest
from app.generation import Route
from app.wire.parsing import parse
from app.wire.requests import REQUESTS

CONTEXT = 256
EOS = frozenset({4, 2})


@pytest.fixture(scope="module")
def intake(demo_tokens: Tokens) -> Intake:
    recommended = {"temperature": 0.6, "top_p": 0.9}
    return Intake(Loaded(None, demo_tokens, CONTEXT, EOS, recommended), CONTEXT)


def chat(intake: Intake, **fields: Any) -> Order:
    body = {"messages": [{"role": "user", "content": "hi"}]} | fields
    return intake.chat(parse(Route.CHAT, json.dumps(body).encode()), "id")  # type: ignore[arg-type]


def complete(intake: Intake, **fields: Any) -> Order:
    body = {"prompt": "hi"} | fields
    return intake.completions(parse(Route.COMPLETIONS, json.dumps(body).encode()), "id")  # type: ignore[arg-type]


CHAT_REFUSED: dict[str, Any] = {
    "best_of": 2,
    "response_format": {"type": "json_object"},
    "length_penalty": 2.0,
    "allowed_token_ids": [1],
    "bad_words": ["x"],
    "truncate_prompt_tokens": 5,
    "prompt_logprobs": 1,
    "logprob_token_ids": [1],
    "use_beam_search": True,
    "structured_outputs": {"regex": "a"},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "prediction": {"type": "content", "content": "x"},
    "modalities": ["audio"],
    "audio": {"voice": "x"},
    "thinking_token_budget": 5,
    "echo": True,
    "n": 9,
    "min_tokens": -1,
    "stop_token_ids": [99999],
    "logit_bias": {"99999": 1.0},
    "continue_final_message": True,
}


@pytest.mark.parametrize(("name", "value"), CHAT_REFUSED.items())
def test_what_chat_cannot_do_is_refused_by_name(intake: Intake, name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(intake, **{name: value})
    assert caught.value.param == name


def test_a_template_sees_the_switches_that_were_said_and_no_others(
    intake: Intake, demo_tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most ask whether one is defined: of one that is none they would take it for switched off."""
    template = "{% if enable_thinking is defined %}thinks{% endif %}{% if clear_thinking is defined %}clears{% endif %}"
    monkeypatch.setattr(demo_tokens._tokenizer, "chat_template", template)
    (prompt,) = chat(intake, chat_template_kwargs={"clear_thinking": False}).prompts
    assert demo_tokens.decode(prompt) == "clears"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
    ],
)
def test_what_completions_cannot_do_is_refused_by_name(intake: Intake, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        complete(intake, add_special_tokens=False, **fields)
    assert caught.value.param == param


def test_asking_for_nothing_special_is_no_offence(intake: Intake) -> None:
    harmless = {
        "best_of": 1,
        "response_format": {"type": "text"},
        "length_penalty": 1.0,
        "use_beam_search": False,
        "tools": [],
        "tool_choice": "none",
        "modalities": ["text"],
        "echo": False,
        "prompt_logprobs": None,
        "structured_outputs": None,
        "user": "somebody",
        "metadata": {"a": "b"},
        "store": False,
    }
    assert len(chat(intake, **harmless).choices) == 1


def test_every_field_of_a_body_is_obeyed_refused_or_known_to_be_without_effect() -> None:
    from app.engines.transformers import orders

    obeyed = {
        *("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "n", "stop", "presence_penalty"),
        *("frequency_penalty", "logit_bias", "seed", "top_k", "min_p", "repetition_penalty", "min_tokens", "logprobs"),
        *("stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "add_special_tokens"),
        *("return_token_ids", "return_tokens_as_token_ids", "messages", "max_completion_tokens", "top_logprobs"),
        *("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "prompt", "echo"),
    }
    without_effect = {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"),
        *("prompt_cache_retention", "prompt_cache_options"),
        "truncation_side",  # of what is refused
        *("spaces_between_special_tokens", "reasoning_effort", "include_reasoning", "parallel_tool_calls"),
        *("prompt_cache_retention", "prompt_cache_options"),
    }
    for route, lacks in ((Route.CHAT, orders._CHAT_LACKS), (Route.COMPLETIONS, orders._COMPLETION_LACKS)):
        unknown = set(REQUESTS[route].__struct_fields__) - obeyed - without_effect - set(lacks)
        assert not unknown, route


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "1", "tool_call_id": "x"}, "messages[0].role"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "messages[0].role"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},
            "messages[0].content[0]",
        ),
    ],
)
def test_messages_that_need_more_than_text_are_refused(intake: Intake, message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(intake, messages=[message])
    assert caught.value.param == param


def test_text_parts_are_one_text(intake: Intake, demo_tokens: Tokens) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a queue?"}]
    prompt = chat(intake, messages=[{"role": "developer", "content": parts}]).prompts[0]
    assert "system\nWhat is a queue?<|im_end|>" in demo_tokens.decode(prompt)


def test_a_request_that_cannot_fit_the_context_is_refused_before_anything_is_queued(intake: Intake) -> None:
    with pytest.raises(ContextTooLong):
        chat(intake, max_tokens=CONTEXT)
    with pytest.raises(ContextTooLong):
        complete(intake, prompt=[5] * CONTEXT)


def test_without_a_limit_a_chat_has_room_up_to_the_context_and_a_completion_sixteen_tokens(intake: Intake) -> None:
    order = chat(intake)
    assert order.choices[0].job.max_tokens == CONTEXT - len(order.prompts[0])
    assert complete(intake, prompt=[5] * 100).choices[0].job.max_tokens == 16
    assert complete(intake, prompt=[5] * (CONTEXT - 3)).choices[0].job.max_tokens == 3
    assert chat(intake, max_tokens=5, max_completion_tokens=7).choices[0].job.max_tokens == 7


def test_what_a_request_leaves_open_is_as_the_models_makers_recommend(intake: Intake) -> None:
    assert chat(intake).choices[0].job.sampling.temperature == 0.6
    assert chat(intake, temperature=0).choices[0].job.sampling.temperature == 0.0
    assert chat(intake).choices[0].job.sampling.top_p == 0.9


@pytest.mark.parametrize(
    ("prompt", "count"), [("a b", 1), (["a", "b"], 2), ([5, 6], 1), ([[5, 6], [7], [8]], 3)], ids=str
)
def test_prompts_come_in_four_forms(intake: Intake, prompt: Any, count: int) -> None:
    order = complete(intake, prompt=prompt, n=2)
    assert len(order.prompts) == count
    assert [choice.index for choice in order.choices] == list(range(2 * count))


def test_choices_differ_by_seed_and_the_first_has_the_requests_own(intake: Intake) -> None:
    seeds = [choice.job.sampling.seed for choice in complete(intake, prompt=["a", "a"], n=3, seed=9).choices]
    assert seeds[0] == 9
    assert seeds[:3] == seeds[3:]
    assert len(set(seeds)) == 3
    assert len({chat(intake).choices[0].job.sampling.seed for _ in range(5)}) == 5


def test_echo_repeats_the_prompt(intake: Intake) -> None:
    assert complete(intake, prompt=["a b", "c"], echo=True, n=2).echoes == ["a b", "a b", "c", "c"]
