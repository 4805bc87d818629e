"""Each row by its own rules, each draw by its seed and place alone."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engines.transformers.sampling import Row, Sampling, choose, derived, draw_seed

PLAIN = Sampling(temperature=0.0)


def logits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def drawn(scores: list[float], sampling: Sampling, times: int = 400, prompt: list[int] | None = None) -> Counter[int]:
    """What comes out of as many draws, each at another place."""
    rows = [Row(sampling, (prompt or []) + [0] * place) for place in range(times)]
    return Counter(choose(logits(*[scores] * times), rows).tolist())


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-39, 1e-6])
def test_zero_temperature_and_what_is_next_to_it_take_the_likeliest(temperature: float) -> None:
    rows = [Row(Sampling(temperature=temperature, top_p=0.9), []) for _ in range(2)]
    assert choose(logits([0, 3, 1], [5, 0, 0]), rows).tolist() == [1, 0]
    assert [row.failure for row in rows] == [None, None]


def test_rows_of_one_batch_follow_their_own_rules() -> None:
    scores = [2.0, 1.9, -5.0, 0.0]
    rows = [
        Row(PLAIN, []),
        Row(Sampling(temperature=0.0, logit_bias=((3, 10.0),)), []),
        Row(Sampling(temperature=0.0, repetition_penalty=2.0), [0]),
        Row(Sampling(temperature=1.0, top_k=1), []),
        Row(Sampling(temperature=0.0, min_tokens=1, ends=frozenset({0})), []),
        Row(Sampling(temperature=1e-3, seed=4), []),
    ]
    assert choose(logits(*[scores] * 6), rows).tolist() == [0, 3, 1, 0, 1, 0]


def test_draws_follow_the_distribution() -> None:
    found = drawn([math.log(0.7), math.log(0.2), math.log(0.1)], Sampling(seed=1), 4000)
    assert [round(found[token] / 4000, 1) for token in range(3)] == [0.7, 0.2, 0.1]


def test_temperature_flattens() -> None:
    assert drawn([2.0, 0.0], Sampling(temperature=2.0))[1] > drawn([2.0, 0.0], Sampling(temperature=0.5))[1] + 40


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(top_k=2), {0, 1}),
        (Sampling(top_p=0.5), {0}),
        (Sampling(top_p=0.6), {0, 1}),
        (Sampling(min_p=0.3), {0, 1}),
        (Sampling(top_k=3, top_p=0.99), {0, 1, 2}),
        (Sampling(top_k=100), {0, 1, 2, 3}),
    ],
)
def test_filters_leave_only_the_likeliest(sampling: Sampling, allowed: set[int]) -> None:
    scores = [math.log(each) for each in (0.5, 0.3, 0.14, 0.06)]
    assert set(drawn(scores, sampling)) == allowed


def test_penalties_count_what_was_produced_and_repetition_the_prompt_too() -> None:
    def best(sampling: Sampling, prompt: list[int], produced: list[int]) -> int:
        return int(choose(logits([1.0, 0.9, 0.0]), [Row(sampling, prompt, produced)])[0])

    assert best(Sampling(temperature=0.0, presence_penalty=0.5), [], [0]) == 1
    assert best(Sampling(temperature=0.0, presence_penalty=0.5), [0], []) == 0
    assert best(Sampling(temperature=0.0, frequency_penalty=0.06), [], [0]) == 0
    assert best(Sampling(temperature=0.0, frequency_penalty=0.06), [], [0, 0]) == 1
    assert best(Sampling(temperature=0.0, repetition_penalty=1.5), [0], []) == 1
    assert best(Sampling(temperature=0.0, presence_penalty=-0.5), [], [1]) == 1


def test_counts_are_kept_up_from_token_to_token() -> None:
    row = Row(Sampling(temperature=0.0, frequency_penalty=0.4), [])
    for _ in range(6):
        row.produced.append(int(choose(logits([1.0, 0.5, 0.0]), [row])[0]))
    assert row.produced == [0, 0, 1, 0, 1, 2]


def test_logprobs_are_those_of_the_model_before_any_processing() -> None:
    row = Row(Sampling(temperature=0.0, logit_bias=((2, 50.0),), logprobs=2), [])
    scores = [math.log(0.6), math.log(0.3), math.log(0.1)]
    assert choose(logits(scores), [row]).tolist() == [2]
    assert row.logprobs is not None
    assert row.logprobs.chosen == pytest.approx(math.log(0.1))
    assert row.logprobs.rank == 3
    assert [token for token, _ in row.logprobs.top] == [0, 1]
    assert [value for _, value in row.logprobs.top] == pytest.approx([math.log(0.6), math.log(0.3)])


def test_a_row_that_cannot_be_served_disturbs_no_other() -> None:
    rows = [
        Row(Sampling(temperature=0.0, logit_bias=((99, 1.0),)), []),
        Row(Sampling(temperature=0.0, logit_bias=((1, 9.0),)), []),
    ]
    assert choose(logits([1.0, 0.0], [1.0, 0.0]), rows)[1] == 1
    assert isinstance(rows[0].failure, IndexError)
    assert rows[1].failure is None


@settings(max_examples=40)
@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=12),
    st.floats(0.1, 2),
    st.floats(0.05, 1),
    st.integers(0, 13),
    st.floats(0, 1),
    st.integers(0, 2**63),
)
def test_no_token_is_drawn_that_was_ruled_out(
    scores: list[float], temperature: float, top_p: float, top_k: int, min_p: float, seed: int
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed)
    probabilities = torch.softmax(torch.tensor(scores) / temperature, 0)
    ranks = torch.argsort(probabilities, descending=True, stable=True).argsort()
    for token in drawn(scores, sampling, 30):
        assert not top_k or ranks[token] < top_k
        assert probabilities[token] >= min_p * probabilities.max() - 1e-6
        assert probabilities[probabilities > probabilities[token]].sum() < top_p + 1e-5


def test_the_same_draw_alone_and_in_a_crowd() -> None:
    scores = torch.randn(12, 50, generator=torch.Generator().manual_seed(0))

    def row(index: int) -> Row:
        return Row(Sampling(temperature=1.0, top_p=0.9 if index % 2 else 1.0, seed=index), [0] * index)

    together = choose(scores.clone(), [row(index) for index in range(12)]).tolist()
    alone = [int(choose(scores[index : index + 1].clone(), [row(index)])[0]) for index in range(12)]
    assert together == alone


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6))
def test_every_place_has_a_draw_of_its_own(seed: int, place: int) -> None:
    drawn_by = {draw_seed(seed, place), draw_seed(seed, place + 1), draw_seed(seed ^ 1, place)}
    assert len(drawn_by) == 3
    assert all(0 <= each < 2**64 for each in drawn_by)


def test_a_draw_does_not_turn_on_the_last_bits_of_the_logits() -> None:
    scores = torch.randn(400, 3000, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(400, 3000, generator=torch.Generator().manual_seed(1)) * 1e-5

    def drawn_from(logits: torch.Tensor) -> torch.Tensor:
        return choose(logits, [Row(Sampling(seed=place), [0] * place) for place in range(400)])

    assert int((drawn_from(scores.clone()) != drawn_from(scores + noise)).sum()) <= 1


def test_choices_of_one_request_have_seeds_of_their_own() -> None:
    assert derived(7, 0) == 7
    assert len({derived(7, index) for index in range(8)} | {derived(8, index) for index in range(8)}) == 16
