"""The GPUs of a cluster as GLLM's users write them: `3`, `0:3`, `0,2,5`, `0:1,4:5`, or several such words.

GLLM's README makes one worker of each GPU; its code made one of each word, with all of the word's GPUs. The README
holds here, and `--gpus-per-worker` says the other thing where it is meant.
"""

import re
from collections.abc import Iterator, Sequence

MOST = 1_024
"""A slip of the finger (`0:3000`) is told, not tried."""

_INDEX = re.compile(r"[0-9]{1,9}")
_RANGE = re.compile(r"([0-9]{1,9}):([0-9]{1,9})")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/-]+")


class BadGpus(ValueError):
    """The text is a sentence for the person who typed them."""


def workers(words: Sequence[str], each: int = 1) -> tuple[tuple[str, ...], ...]:
    """The GPUs of each worker, in the order in which they were named."""
    if each < 1:
        raise BadGpus(f"--gpus-per-worker must be at least 1, not {each}.")
    gpus = named(words)
    if len(gpus) % each:
        raise BadGpus(f"--workers names {_counted(len(gpus))}, which cannot be shared out to workers of {each} each.")
    return tuple(gpus[first : first + each] for first in range(0, len(gpus), each))


def named(words: Sequence[str]) -> tuple[str, ...]:
    """All of them, once each."""
    items = [item.strip() for word in words for item in word.split(",")]
    if not any(items):
        raise BadGpus("--workers names no GPU: write 3, 0:3, 0,2,5 or 0:1,4:5.")
    gpus: dict[str, None] = {}
    for item in items:
        for gpu in _of(item):
            if gpu in gpus:
                raise BadGpus(f"--workers names GPU {gpu} twice.")
            gpus[gpu] = None
    return tuple(gpus)


def _of(item: str) -> Iterator[str]:
    if _INDEX.fullmatch(item):
        yield str(int(item))
    elif found := _RANGE.fullmatch(item):
        first, last = int(found[1]), int(found[2])
        if last < first:
            raise BadGpus(f"--workers: the range {item} runs backwards; write {last}:{first}.")
        if last - first >= MOST:
            raise BadGpus(f"--workers: the range {item} is more than {MOST} GPUs.")
        yield from (str(index) for index in range(first, last + 1))
    elif _UUID.fullmatch(item):
        yield item
    else:
        raise BadGpus(f"--workers: {item!r} is no GPU and no range of GPUs: write 3, 0:3, 0,2,5 or 0:1,4:5.")


def _counted(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"
