"""Which prompts a replica has read lately, and so probably has in its cache."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

REMEMBERED = 16_384
"""Steps of a chain, on each replica: some hundreds of conversations, as many as a GPU's cache holds."""


class Prefixes:
    """The steps of the latest chains. Each step of a chain stands for the prompt from its beginning to there."""

    __slots__ = ("_most", "_seen")

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._seen: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def remember(self, chain: Sequence[int]) -> None:
        """The longest first: what is forgotten first is then the end of a prompt, never its beginning."""
        seen = self._seen
        for step in reversed(chain):
            seen[step] = None
            seen.move_to_end(step)
        while len(seen) > self._most:
            seen.popitem(last=False)

    def known(self, chain: Sequence[int]) -> int:
        """How many steps of it, from the beginning. Whoever has a step has those before it, so halving finds it."""
        seen = self._seen
        if not chain or chain[0] not in seen:
            return 0
        return bisect_left(chain, True, key=lambda step: step not in seen)

    def forget(self) -> None:
        self._seen.clear()
