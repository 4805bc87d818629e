import pytest
from hypothesis import given
from hypothesis import strategies as st

from gllm.cli.gpus import MOST, BadGpus, named, workers

INDICES = st.lists(st.integers(0, 40), min_size=1, max_size=16, unique=True)


def runs(indices: list[int]) -> list[str]:
    """As a person would write them: neighbours that rise by one become a range."""
    items: list[list[int]] = []
    for index in indices:
        if items and items[-1][-1] + 1 == index:
            items[-1].append(index)
        else:
            items.append([index])
    return [f"{item[0]}:{item[-1]}" if len(item) > 1 else f"{item[0]}" for item in items]


@pytest.mark.parametrize(
    ("words", "each", "made"),
    [
        (["3"], 1, (("3",),)),
        (["0:3"], 1, (("0",), ("1",), ("2",), ("3",))),
        (["0,2,5"], 1, (("0",), ("2",), ("5",))),
        (["0:1,4:5"], 1, (("0",), ("1",), ("4",), ("5",))),
        (["0", "1", "2"], 1, (("0",), ("1",), ("2",))),
        (["0:1", "4,6"], 2, (("0", "1"), ("4", "6"))),
        (["0:3"], 4, (("0", "1", "2", "3"),)),
        (["5:5"], 1, (("5",),)),
        (["007"], 1, (("7",),)),
        (["0, 1"], 1, (("0",), ("1",))),
        (["GPU-8f6b2c1d-0a,MIG-77/1/0"], 1, (("GPU-8f6b2c1d-0a",), ("MIG-77/1/0",))),
    ],
)
def test_who_gets_which(words: list[str], each: int, made: tuple[tuple[str, ...], ...]) -> None:
    assert workers(words, each) == made


@pytest.mark.parametrize(
    ("words", "each", "sentence"),
    [
        ([], 1, "--workers names no GPU: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        ([""], 1, "--workers names no GPU: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        ([","], 1, "--workers names no GPU: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (["0:x"], 1, "--workers: '0:x' is no GPU and no range of GPUs: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (["0,,1"], 1, "--workers: '' is no GPU and no range of GPUs: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (["-1"], 1, "--workers: '-1' is no GPU and no range of GPUs: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (["0:1:2"], 1, "--workers: '0:1:2' is no GPU and no range of GPUs: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (["²"], 1, "--workers: '²' is no GPU and no range of GPUs: write 3, 0:3, 0,2,5 or 0:1,4:5."),
        (["3:1"], 1, "--workers: the range 3:1 runs backwards; write 1:3."),
        (["0:3000"], 1, f"--workers: the range 0:3000 is more than {MOST} GPUs."),
        (["0:2,2:4"], 1, "--workers names GPU 2 twice."),
        (["1", "01"], 1, "--workers names GPU 1 twice."),
        (["0:2"], 2, "--workers names 3 GPUs, which cannot be shared out to workers of 2 each."),
        (["0"], 2, "--workers names 1 GPU, which cannot be shared out to workers of 2 each."),
        (["0"], 0, "--gpus-per-worker must be at least 1, not 0."),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(words: list[str], each: int, sentence: str) -> None:
    with pytest.raises(BadGpus) as refused:
        workers(words, each)
    assert str(refused.value) == sentence


@given(indices=INDICES, cut=st.integers(0, 16))
def test_however_it_is_written_it_means_the_same(indices: list[int], cut: int) -> None:
    wanted = tuple(map(str, indices))
    items = runs(indices)
    assert named([",".join(map(str, indices))]) == wanted
    assert named([str(index) for index in indices]) == wanted
    assert named([",".join(items)]) == wanted
    assert named([word for word in (",".join(items[:cut]), ",".join(items[cut:])) if word]) == wanted


@given(indices=INDICES, each=st.integers(1, 16))
def test_each_gpu_goes_to_one_worker_and_all_workers_get_as_many(indices: list[int], each: int) -> None:
    words = [",".join(map(str, indices))]
    if len(indices) % each:
        with pytest.raises(BadGpus):
            workers(words, each)
    else:
        made = workers(words, each)
        assert {len(gpus) for gpus in made} == {each}
        assert [gpu for gpus in made for gpu in gpus] == list(map(str, indices))


@given(indices=INDICES, again=st.data())
def test_a_gpu_named_twice_is_refused(indices: list[int], again: st.DataObject) -> None:
    twice = again.draw(st.sampled_from(indices))
    with pytest.raises(BadGpus, match=f"GPU {twice} twice"):
        named([*map(str, indices), str(twice)])


@given(text=st.text(max_size=12) | st.text("0123456789:,- x", max_size=12))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        gpus = named([text])
    except BadGpus:
        return
    assert len(set(gpus)) == len(gpus) > 0
