"""What is left to one tenant, or to one tenant with one model, in this process."""

import math

from app.clock import Clock
from app.generation import Expected
from app.reliability.allowance import WINDOW_S, Levels
from app.reliability.token_bucket import TokenBucket
from app.tenant import Limits


class Account:
    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.limits = limits
        self._clock = clock
        self._requests = _bucket(limits.requests_per_minute, clock)
        self._tokens = _bucket(limits.tokens_per_minute, clock)
        self._exposure = 0
        self.running = 0

    def levels(self) -> Levels:
        now = self._clock()
        requests = self._requests.level_at(now) if self._requests is not None else math.inf
        tokens = self._tokens.level_at(now) if self._tokens is not None else math.inf
        return Levels(requests, tokens, self._exposure, self.running)

    def take(self, expected: Expected) -> None:
        """The caller has just asked for the levels."""
        tokens = expected.tokens
        if self._requests is not None:
            self._requests.draw(1)
        if self._tokens is not None:
            self._tokens.draw(tokens)
        self._exposure += expected.most_tokens - tokens
        self.running += 1

    def settle(self, expected: Expected, requests_back: int, tokens_back: int) -> None:
        if self._requests is not None and requests_back:
            self._requests.put(requests_back)
        if self._tokens is not None and tokens_back:
            self._tokens.put(tokens_back)
        self._exposure -= expected.most_tokens - expected.tokens
        self.running -= 1

    def follow(self, limits: Limits) -> None:
        """The tenant's limits were changed: who has used half still has half."""
        self.limits = limits
        self._requests = _resized(self._requests, limits.requests_per_minute, self._clock)
        self._tokens = _resized(self._tokens, limits.tokens_per_minute, self._clock)

    def forgettable(self) -> bool:
        """A new one would be the same."""
        return self.running == 0 and _is_full(self._requests) and _is_full(self._tokens)


def _bucket(limit: int | None, clock: Clock) -> TokenBucket | None:
    return None if limit is None else TokenBucket(limit, limit / WINDOW_S, clock)


def _resized(bucket: TokenBucket | None, limit: int | None, clock: Clock) -> TokenBucket | None:
    if bucket is None or limit is None:
        return _bucket(limit, clock)
    bucket.resize(limit, limit / WINDOW_S)
    return bucket


def _is_full(bucket: TokenBucket | None) -> bool:
    return bucket is None or bucket.level() >= bucket.capacity
