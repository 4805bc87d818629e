"""What a call will use, guessed before it is made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.generation import Call, Expected, Route, Usage
from app.reliability import estimates as module
from app.reliability.estimates import CONTEXT, OUTPUT, Estimates
from tests.reliability.calls import call, tenant


def test_at_first_a_token_is_four_bytes_and_all_that_is_asked_for_is_made() -> None:
    assert Estimates().of(call(prompt_bytes=400, max_tokens=50), 8_192) == Expected(100, 50, 150)


def test_every_choice_is_made() -> None:
    assert Estimates().of(call(prompt_bytes=400, max_tokens=50, choices=3), 8_192) == Expected(100, 150, 250)


def test_without_a_limit_the_rest_of_the_context_is_asked_for_and_less_is_expected() -> None:
    assert Estimates().of(call(prompt_bytes=400, max_tokens=None), 8_192) == Expected(100, OUTPUT, 8_192)
    assert Estimates().of(call(prompt_bytes=400, max_tokens=None), 300) == Expected(100, 200, 300)
    assert Estimates().of(call(prompt_bytes=400, max_tokens=None), None).most_tokens == CONTEXT


def test_a_completion_without_a_limit_is_sixteen_tokens() -> None:
    guess = Estimates().of(call(route=Route.COMPLETIONS, prompt_bytes=400, max_tokens=None), 8_192)
    assert guess == Expected(100, 16, 116)


def test_embeddings_make_no_tokens_and_counting_tokens_uses_none() -> None:
    estimates = Estimates()
    assert estimates.of(call(route=Route.EMBEDDINGS, max_tokens=None), 512) == Expected(100, 0, 100)
    assert estimates.of(call(route=Route.TOKENIZE, max_tokens=None), 512) == Expected(0, 0, 0)


def test_media_is_never_more_than_the_context() -> None:
    picture = call(prompt_bytes=9_000_000, max_tokens=50)
    assert Estimates().of(picture, 8_192) == Expected(8_192, 50, 8_242)
    assert Estimates().of(picture, None).prompt_tokens == CONTEXT


def test_more_than_the_context_is_never_made() -> None:
    assert Estimates().of(call(prompt_bytes=400, max_tokens=10**9), 8_192).most_tokens == 100 + 8_192


def taught(estimates: Estimates, of: Call, usage: Usage, times: int = 1, context: int | None = 8_192) -> Estimates:
    for _ in range(times):
        estimates.learn(of, estimates.of(of, context), usage)
    return estimates


def test_the_bytes_of_a_token_are_learned_for_each_model() -> None:
    of = call(prompt_bytes=10_000)
    estimates = taught(Estimates(), of, Usage(5_000, 100), times=100)
    assert estimates.of(of, 8_192).prompt_tokens == pytest.approx(5_000, rel=0.01)
    assert estimates.of(call(prompt_bytes=10_000, model="other"), 8_192).prompt_tokens == 2_500


def test_long_prompts_teach_more_than_short_ones() -> None:
    long, short = call(prompt_bytes=10_000), call(prompt_bytes=100)
    estimates = taught(Estimates(), long, Usage(3_000, 100), times=100)
    taught(estimates, short, Usage(90, 100), times=20)
    assert estimates.of(long, 8_192).prompt_tokens == pytest.approx(3_000, rel=0.1)


@pytest.mark.parametrize("usage", [Usage(800, 1), Usage(0, 1)])
def test_media_teaches_nothing_about_text(usage: Usage) -> None:
    estimates = taught(Estimates(), call(prompt_bytes=5_000_000), usage, times=50)
    estimates = taught(estimates, call(prompt_bytes=300), Usage(4_000, 1), times=50)
    assert estimates.of(call(prompt_bytes=400), 8_192).prompt_tokens == 100


def test_who_asks_for_more_than_is_used_is_expected_to_use_less() -> None:
    of = call(prompt_bytes=400, max_tokens=1_000)
    estimates = taught(Estimates(), of, Usage(100, 200), times=20)
    assert estimates.of(of, 8_192) == Expected(100, 200, 1_100)


def test_it_takes_more_than_a_few_answers_to_expect_less() -> None:
    of = call(max_tokens=1_000)
    assert taught(Estimates(), of, Usage(100, 200), times=19).of(of, 8_192).output_tokens == 1_000


def test_one_long_answer_is_expected_again_for_a_while_and_then_forgotten() -> None:
    of = call(max_tokens=1_000)
    estimates = taught(Estimates(), of, Usage(100, 200), times=20)
    taught(estimates, of, Usage(100, 900))
    assert estimates.of(of, 8_192).output_tokens == 900
    taught(estimates, of, Usage(100, 200), times=20)
    assert estimates.of(of, 8_192).output_tokens == 900
    taught(estimates, of, Usage(100, 200), times=20)
    assert estimates.of(of, 8_192).output_tokens == 200


def test_tenants_and_models_do_not_teach_each_other_nor_do_calls_without_a_limit() -> None:
    estimates = taught(Estimates(), call(max_tokens=1_000), Usage(100, 10), times=40)
    others = [call(tenant(name="other"), max_tokens=1_000), call(model="other", max_tokens=1_000)]
    assert [estimates.of(each, 8_192).output_tokens for each in others] == [1_000, 1_000]
    assert estimates.of(call(max_tokens=None), 8_192).output_tokens == OUTPUT


def test_without_a_limit_it_is_learned_what_is_really_made() -> None:
    of = call(prompt_bytes=400, max_tokens=None)
    estimates = taught(Estimates(), of, Usage(100, 4_000))
    assert estimates.of(of, 8_192).output_tokens == pytest.approx(4_000, abs=1)


def test_an_engine_that_tells_more_than_was_asked_for_teaches_no_more_than_all() -> None:
    of = call(max_tokens=100)
    assert taught(Estimates(), of, Usage(10**6, 10**6), times=50).of(of, 8_192) == Expected(100, 100, 200)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 10)
    estimates = Estimates()
    for n in range(100):
        of = call(tenant(name=f"tenant-{n}"), model=f"model-{n}")
        taught(estimates, of, Usage(90, 10), times=25)
    assert len(estimates._shares) == len(estimates._ratios) == 10
    assert estimates.of(call(tenant(name="tenant-99"), model="model-99"), 8_192).output_tokens == 10


@given(
    st.lists(st.builds(Usage, st.integers(0, 10**7), st.integers(0, 10**7)), max_size=50),
    st.one_of(st.none(), st.integers(1, 10**7)),
    st.integers(0, 10**7),
    st.one_of(st.none(), st.integers(1, 10**6)),
    st.integers(1, 16),
)
def test_whatever_was_learned_a_guess_is_within_what_can_be(
    usages: list[Usage], max_tokens: int | None, prompt_bytes: int, context: int | None, choices: int
) -> None:
    of = call(prompt_bytes=prompt_bytes, max_tokens=max_tokens, choices=choices)
    estimates = Estimates()
    for usage in usages:
        taught(estimates, of, usage, context=context)
    guess = estimates.of(of, context)
    room = context or CONTEXT
    assert 0 <= guess.prompt_tokens <= room
    assert 0 <= guess.tokens <= guess.most_tokens <= room * (1 + choices)
    if max_tokens is not None:
        assert guess.output_tokens <= max_tokens * choices
