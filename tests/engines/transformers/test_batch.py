"""The batch over a real network: right tokens, room given back, and no request that takes others down with it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch

from app.engines.transformers.sampling import Sampling
from tests.engines.transformers.conftest import VOCABULARY, Bench

Make = Callable[..., Bench]

GREEDY = Sampling(temperature=0.0)


def words(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    found: list[int] = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
    return found


def by_hand(network: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens without a cache and without a batch: the whole sequence is computed again for each."""
    ids = list(prompt)
    implementation = network.config._attn_implementation
    network.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            for _ in range(count):
                ids.append(int(network(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    finally:
        network.set_attn_implementation(implementation)
    return ids[len(prompt) :]


@contextmanager
def failing_steps(network: Any, when: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """The model raises in every step whose tokens fulfil the condition."""
    real = network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if when(kwargs["input_ids"]):
            raise RuntimeError("injected")
        return real(*args, **kwargs)

    with patch.object(network, "forward", forward):
        yield


def wait_for(condition: Callable[[], bool], limit_s: float = 5.0) -> float:
    """Seconds until the condition held."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < limit_s, "it never came to be"
        time.sleep(0.002)
    return time.monotonic() - begun


# --- the right tokens -------------------------------------------------------------------------------------------------


def test_a_batch_gives_each_sequence_the_tokens_it_would_get_alone(network: Any, bench: Make) -> None:
    prompts = [words(seed, length) for seed, length in enumerate((1, 5, 17, 40, 70, 130))]
    expected = [by_hand(network, prompt, 24) for prompt in prompts]
    one = bench()
    jobs = [one.submit(prompt, 24) for prompt in prompts]
    one.until_done(*jobs)
    assert [job.row.produced for job in jobs] == expected


def test_a_seeded_sequence_does_not_depend_on_the_batch_around_it(bench: Make) -> None:
    one = bench()
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=11)
    alone = one.run(words(1, 30), 60, sampling)
    crowd = [one.submit(words(seed, 10 + seed), 90, Sampling(temperature=1.0, seed=seed)) for seed in range(2, 8)]
    again = one.submit(words(1, 30), 60, sampling)
    one.until_done(again, *crowd)
    assert again.row.produced == alone


def test_a_sequence_taken_up_again_with_its_own_tokens_goes_on_as_if_never_broken(bench: Make) -> None:
    one = bench()
    sampling = Sampling(temperature=0.8, seed=5)
    whole = one.run(words(3, 21), 40, sampling)
    rest = one.run(words(3, 21) + whole[:15], 25, sampling)
    assert whole[:15] + rest == whole


def test_a_stop_token_ends_a_sequence_in_the_step_that_makes_it(bench: Make) -> None:
    one = bench()
    produced = one.run(words(4, 9), 30)
    token = produced[6]
    first = produced.index(token)
    job = one.submit(words(4, 9), 30, stop_ids=frozenset({token}))
    ends = one.until_done(job)
    assert ends[job.id] == "stop"
    assert job.row.produced == produced[: first + 1]


def test_an_end_token_is_not_chosen_before_min_tokens(bench: Make) -> None:
    one = bench()
    token = one.run(words(4, 9), 1)[0]
    sampling = Sampling(temperature=0.0, min_tokens=5, ends=frozenset({token}))
    job = one.submit(words(4, 9), 30, sampling, eos=frozenset({token}))
    one.until_done(job)
    assert token not in job.row.produced[:5]


def test_sequences_report_their_tokens_once_a_step(bench: Make) -> None:
    one = bench()
    jobs = [one.submit(words(seed, 8), 20) for seed in range(4)]
    one.until_done(*jobs)
    assert sum(one.steps) == 4 * (8 + 19)  # each prompt token and each produced one but the last went in once


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_known_prefix_is_not_computed_again_and_changes_nothing(bench: Make) -> None:
    one = bench()
    prompt = words(5, 70)
    first = one.submit(prompt, 10)
    one.until_done(first)
    second = one.submit(prompt, 10)
    one.until_done(second)
    assert first.cached_tokens == 0
    assert second.cached_tokens == 64
    assert second.row.produced == first.row.produced
    assert (one.batch.counters.prefix_queries, one.batch.counters.prefix_hits) == (140, 64)


def test_all_pages_are_free_when_all_have_finished(bench: Make) -> None:
    one = bench()
    jobs = [one.submit(words(seed, 50), 30) for seed in range(8)]
    one.until_done(*jobs)
    wait_for(lambda: one.batch.running == 0)
    assert one.batch.usage == 0.0


def test_a_cancelled_sequence_leaves_within_a_moment_and_its_pages_return(bench: Make) -> None:
    one = bench(blocks=64)
    job = one.submit(words(6, 40), 400)
    one.next()
    assert one.batch.running == 1
    one.batch.cancel(job)
    assert wait_for(lambda: one.batch.running == 0) < 0.5
    assert one.batch.usage == 0.0


def test_a_waiting_sequence_can_be_cancelled(bench: Make) -> None:
    one = bench(sequences=1)
    running = one.submit(words(6, 10), 300)
    one.next()
    waiting = one.submit(words(7, 10), 10)
    wait_for(lambda: one.batch.waiting == 1)
    one.batch.cancel(waiting)
    wait_for(lambda: one.batch.waiting == 0)
    one.batch.cancel(running)
    assert one.run(words(8, 10), 3)


def test_sequences_that_outgrow_the_cache_together_take_turns_and_lose_nothing(network: Any, bench: Make) -> None:
    one = bench(sequences=6, blocks=16)  # 256 tokens; six times 100 do not fit
    prompts = [words(seed, 20) for seed in range(6)]
    jobs = [one.submit(prompt, 80) for prompt in prompts]
    ends = one.until_done(*jobs)
    assert set(ends.values()) == {"length"}
    assert one.batch.counters.preemptions > 0
    assert [job.row.produced for job in jobs] == [by_hand(network, prompt, 80) for prompt in prompts]


def test_cancelling_everyone_after_a_preemption_does_not_close_the_door(bench: Make) -> None:
    """The manager lets nobody in after a preemption until something finishes; cancelled ones never do."""
    one = bench(sequences=6, blocks=16)
    jobs = [one.submit(words(seed, 20), 200) for seed in range(3)]
    wait_for(lambda: one.batch.counters.preemptions > 0, 10)
    for job in jobs:
        one.batch.cancel(job)
    assert len(one.run(words(9, 20), 5)) == 5


def test_a_long_prompt_is_not_passed_by_short_ones_for_ever(bench: Make) -> None:
    one = bench(sequences=4, blocks=16)
    first = one.submit(words(1, 100), 60)
    one.next()
    long = one.submit(words(2, 200), 5)
    short = [one.submit(words(seed, 20), 5) for seed in range(3, 9)]
    one.until_done(first, long, *short)
    assert long.started is not None
    assert all(job.started is not None and job.started >= long.started for job in short)


def test_pages_kept_for_their_content_are_given_up_one_by_one(bench: Make) -> None:
    one = bench(blocks=32)
    for seed in range(6):
        one.run(words(seed, 65), 2)  # four full pages each
    newest = one.submit(words(5, 65), 2)
    one.until_done(newest)
    oldest = one.submit(words(0, 65), 2)
    one.until_done(oldest)
    one.run(words(50, 200), 60)
    late = one.submit(words(5, 65), 2)
    one.until_done(late)
    assert newest.cached_tokens == 64
    assert late.cached_tokens > 0, "one large sequence must not empty the whole prefix cache"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_sequence_that_breaks_the_step_is_failed_alone(network: Any, bench: Make) -> None:
    one = bench()
    good = [words(seed, 12) for seed in range(4)]
    expected = [by_hand(network, prompt, 30) for prompt in good]
    poison = min(set(range(VOCABULARY)).difference(*good, *expected))
    with failing_steps(network, lambda ids: bool((ids == poison).any())):
        jobs = [one.submit(prompt, 30) for prompt in good[:2]]
        one.next()
        bad = one.submit([poison, poison], 30)
        jobs += [one.submit(prompt, 30) for prompt in good[2:]]
        ends = one.until_done(bad, *jobs)
    assert ends.pop(bad.id) == "error"
    assert set(ends.values()) == {"length"}
    assert [job.row.produced for job in jobs] == expected
    assert one.batch.alive


def test_a_step_that_fails_once_costs_nobody_anything(network: Any, bench: Make) -> None:
    one = bench()
    prompts = [words(seed, 12) for seed in range(4)]
    expected = [by_hand(network, prompt, 30) for prompt in prompts]
    calls = iter(range(10**6))
    with failing_steps(network, lambda ids: next(calls) == 9):
        jobs = [one.submit(prompt, 30) for prompt in prompts]
        ends = one.until_done(*jobs)
    assert set(ends.values()) == {"length"}
    assert [job.row.produced for job in jobs] == expected
    assert one.batch.counters.recovered == 1


def test_steps_that_fail_only_together_end_in_a_bounded_number_of_trials(network: Any, bench: Make) -> None:
    one = bench()
    with failing_steps(network, lambda ids: ids.shape[1] == 3 and bool(ids.min() >= 0)):
        jobs = [one.submit(words(seed, 1), 40) for seed in range(3)]
        ends = one.until_done(*jobs)
    assert "error" in ends.values()
    assert one.batch.alive
    assert one.run(words(1, 4), 3)


def test_sampling_that_fails_for_one_row_fails_one_row(bench: Make) -> None:
    one = bench()
    bad = one.submit(words(1, 10), 20, Sampling(temperature=1.0, logit_bias=((VOCABULARY + 5, 1.0),)))
    good = one.submit(words(2, 10), 20, Sampling(temperature=1.0, seed=3))
    ends = one.until_done(bad, good)
    assert ends == {bad.id: "error", good.id: "length"}


def test_a_model_that_gives_no_probabilities_ends_the_sequence_with_an_error(network: Any, bench: Make) -> None:
    one = bench()
    bad = one.submit(words(1, 10), 20, Sampling(temperature=1.0, logit_bias=((5, float("nan")),)))
    assert one.until_done(bad) == {bad.id: "error"}


def test_when_the_thread_dies_everybody_is_told(network: Any, bench: Make) -> None:
    one = bench()
    jobs = [one.submit(words(seed, 10), 400) for seed in range(2)]
    one.next()
    beyond_repair = patch.object(type(one.batch._manager), "_recover", side_effect=RuntimeError("beyond repair"))
    with beyond_repair, failing_steps(network, lambda ids: True):
        ends = one.until_done(*jobs)
        assert one.died.wait(5)
    assert set(ends.values()) == {"error"}
    assert not one.batch.alive


@pytest.mark.parametrize("running", [0, 3])
def test_stopping_ends_what_runs_and_the_thread(bench: Make, running: int) -> None:
    one = bench()
    jobs = [one.submit(words(seed, 10), 400) for seed in range(running)]
    if jobs:
        one.next()
    late = [one.submit(words(seed, 10), 400) for seed in range(running)]  # still in the line when the stop comes
    one.batch.stop()
    jobs += late
    assert one.until_done(*jobs) == dict.fromkeys([job.id for job in jobs], "error")
    assert not one.batch.alive
