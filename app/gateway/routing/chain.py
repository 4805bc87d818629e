"""What a prompt begins with, in a few dozen numbers: the chain of its steps.

Step n stands for all that comes before its end. So two prompts have as many steps in common as their beginnings are
equal, and no tokenizer is asked. Steps are as long as a block at first and grow with what lies before them: however
long a prompt is, it has few steps, and at most an eighth of what two have in common goes unseen.
"""

from itertools import pairwise

from app.tenant import Tenant
from app.wire.prompts import prompt_of
from app.wire.requests import AnyRequest

BLOCK = 256
"""Bytes: 64 tokens or so. Less is not worth going anywhere for."""

GROWTH = 8
"""A step is at most so many times shorter than what lies before it."""

LONGEST = 131_072
"""Bytes of a prompt that are looked at. Two that are equal so far meet anyway."""


def _ends() -> list[int]:
    ends, end = [0], BLOCK
    while end <= LONGEST:
        ends.append(end)
        end += max(BLOCK, end // GROWTH // BLOCK * BLOCK)
    return ends


_STEPS = list(pairwise(_ends()))


def chain_of(prompt: bytes, scope: tuple[str, ...]) -> tuple[int, ...]:
    """Of no use beyond its `scope`.

    Hashes of this process, keyed by a secret of its own: nobody can make two prompts meet.
    """
    step = hash(scope)
    chain: list[int] = []
    for start, end in _STEPS:
        if end > len(prompt):
            break
        step = hash((step, prompt[start:end]))
        chain.append(step)
    return tuple(chain)


def prefix_of(request: AnyRequest, model: str, tenant: Tenant) -> tuple[int, ...]:
    """The chain of a request. What one tenant has asked must not show in where another's calls go; and an adapter's
    cache is of no use to its base model."""
    return chain_of(prompt_of(request, LONGEST), (tenant.name, model))
