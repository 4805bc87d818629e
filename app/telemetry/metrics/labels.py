"""Labels that clients or operators choose, kept few."""

from collections.abc import Callable

OTHER = "other"
"""Whatever is beyond the bound, or unknown."""
NONE = "none"
"""There is none (yet): the request was refused before it was known."""

MOST_MODELS = 100
MOST_TENANTS = 100

METHODS = frozenset("GET HEAD POST PUT DELETE PATCH OPTIONS TRACE CONNECT".split())
"""A server may let any word through; only these become a label."""


REASONS = frozenset(
    """queue_full displaced would_miss_deadline model_loading draining no_replica circuit_open model_making_way
    engine_busy engine_out_of_reach model_gone idempotency_unavailable rate_limit_exceeded request_rate token_quota
    concurrency request_larger_than_limit too_many_failed_logins""".split()
)
"""The codes of errors with which calls are refused."""

LIMITS = {
    "request_rate": "requests",
    "token_quota": "tokens",
    "request_larger_than_limit": "tokens",
    "concurrency": "concurrency",
    "too_many_failed_logins": "logins",
}
"""By the error's code."""

LOOKED_FOR_ROOM = 256
"""Where there is no room, it is looked for once in so many times."""


class Few:
    """The first so many known names stand for themselves. One that nobody knows any more makes room for another."""

    def __init__(self, most: int, on_forgotten: Callable[[str], None] = lambda name: None) -> None:
        self.is_known: Callable[[str], bool] = lambda name: True
        self._most = most
        self._on_forgotten = on_forgotten
        self._labels: dict[str, str] = {"": NONE}
        self._turned_away = 0

    def of(self, name: str) -> str:
        label = self._labels.get(name)
        return label if label is not None else self._new(name)

    def _new(self, name: str) -> str:
        if name in (OTHER, NONE) or not self.is_known(name):
            return OTHER
        if len(self._labels) > self._most:
            if self._turned_away % LOOKED_FOR_ROOM == 0:
                self._forget_unknown()
            self._turned_away += 1
        if len(self._labels) > self._most:
            return OTHER
        self._labels[name] = name
        return name

    def _forget_unknown(self) -> None:
        for name in list(self._labels):
            if name and not self.is_known(name):
                self._labels.pop(name, None)
                self._on_forgotten(name)
