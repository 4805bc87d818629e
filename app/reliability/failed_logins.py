"""Wrong keys by address: a few at once, then one every few seconds. Right keys never come by here."""

from collections import OrderedDict
from dataclasses import dataclass, field

from app.clock import Clock


@dataclass
class FailedLogins:
    clock: Clock
    at_once: int = 10
    every_s: float = 6.0
    most_addresses: int = 10_000
    """Beyond them the one that was quiet for the longest time is forgotten."""
    _forgiven_at: OrderedDict[str, float] = field(default_factory=OrderedDict, init=False)
    """By address, when the last of its failures will not count any more."""

    def __len__(self) -> int:
        return len(self._forgiven_at)

    def failed(self, address: str) -> float:
        """Counts it and returns 0.0; or the seconds to wait, for one that comes too soon. Those do not count again."""
        now = self.clock()
        forgiven_at = max(now, self._forgiven_at.get(address, now))
        early_s = forgiven_at - now - (self.at_once - 1) * self.every_s
        if early_s <= 0:
            forgiven_at += self.every_s
        self._forgiven_at[address] = forgiven_at
        self._forgiven_at.move_to_end(address)
        if len(self._forgiven_at) > self.most_addresses:
            self._forgiven_at.popitem(last=False)
        return max(0.0, early_s)
