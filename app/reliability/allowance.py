"""What may be had of each limit, and what follows from it for a request. Arithmetic only: the levels may be held in
this process (`quota`) or in Redis (`stores/redis_quota`).

**Overshoot is at most one request.** A request takes what it reserves from the level, and may turn out to use its
`most_tokens`; what the running ones may still use beyond what they reserved is the exposure. A request is let in only
if its reservation fits into the level, and the exposure of the others too: even if those others use all that they
asked for, the level does not end below zero without this request, nor with it by more than its own `most_tokens`.
Settling never makes that worse, because a request takes from the exposure at least what it takes from the level.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from app.errors import LargerThanLimit, RateLimited
from app.generation import Call, Expected
from app.reliability.token_bucket import seconds_for
from app.tenant import UNLIMITED, Kind, Limits, Standing

WINDOW_S = 60.0
"""A limit is 'per minute', and a bucket holds one minute's worth."""

_REQUESTS, _TOKENS, _CONCURRENT = Kind
"""Looked up once: of an enumeration it takes longer than a call."""

CODES = {Kind.REQUESTS: "request_rate", Kind.TOKENS: "token_quota", Kind.CONCURRENT: "concurrency"}


class Scope(msgspec.Struct, frozen=True, gc=False):
    """What limits hold for: all that a tenant does (no model), or one model of it."""

    model: str | None
    limits: Limits


class Levels(msgspec.Struct, frozen=True, gc=False):
    """Of one scope; infinite where nothing is limited."""

    requests: float
    tokens: float
    exposure: int
    running: int

    def less(self, expected: Expected) -> "Levels":
        """When the request is let in."""
        tokens = expected.tokens
        exposure = self.exposure + expected.most_tokens - tokens
        return Levels(self.requests - 1, self.tokens - tokens, exposure, self.running + 1)


class Waits(NamedTuple):
    """Seconds until each limit would allow the request."""

    requests: float = 0.0
    tokens: float = 0.0
    concurrent: float = 0.0


NO_WAITS = Waits()


def scopes_of(call: Call) -> list[Scope]:
    """Those that limit the call; none is the common case, and costs next to nothing."""
    tenant = call.tenant
    scopes = [] if tenant.limits is UNLIMITED or tenant.limits == UNLIMITED else [Scope(None, tenant.limits)]
    if tenant.model_limits and (limits := tenant.model_limits.get(call.model)) is not None:
        scopes.append(Scope(call.model, limits))
    return scopes


def larger(limits: Limits, expected: Expected) -> bool:
    """No level would ever be enough."""
    return limits.tokens_per_minute is not None and expected.tokens > limits.tokens_per_minute


def fits(limits: Limits, levels: Levels, expected: Expected) -> bool:
    """Said again in `stores/quota_scripts`: change both."""
    if levels.requests < 1 or (limits.concurrent is not None and levels.running >= limits.concurrent):
        return False
    if limits.tokens_per_minute is None or not expected.most_tokens:
        return True
    left = levels.tokens
    return levels.exposure <= left and expected.tokens <= left


def only_places_lack(expected: Expected, stand: Sequence[tuple[Scope, Levels]]) -> bool:
    """Of what did not fit: it would, as soon as others have ended."""
    lacks = [waits(scope.limits, levels, expected, turnover_s=1.0) for scope, levels in stand]
    return not any(each.requests or each.tokens for each in lacks) and any(each.concurrent for each in lacks)


def refusal(call: Call, expected: Expected, stand: Sequence[tuple[Scope, Levels]], turnover_s: float) -> RateLimited:
    """The error for a call that did not fit: it names the limit that takes longest, and tells of them all."""
    if any(larger(scope.limits, expected) for scope, _ in stand):
        return LargerThanLimit(standing=sum((standings(*one) for one in stand), ()))
    standing: tuple[Standing, ...] = ()
    for scope, levels in stand:
        standing += standings(scope, levels, waits(scope.limits, levels, expected, turnover_s))
    worst = max(standing, key=lambda each: each.wait_s or 0.0)
    text, code = _told(worst, call), CODES[worst.kind]
    return RateLimited(text, code=code, retry_after=worst.wait_s, standing=standing)


def _told(limit: Standing, call: Call) -> str:
    noun = "token" if limit.kind is Kind.TOKENS else "request"
    many = "s" if limit.limit != 1 else ""
    when = "at once" if limit.kind is Kind.CONCURRENT else "per minute"
    whose = f" of the model '{call.model}'" if limit.of_model else ""
    return f"The limit of {limit.limit} {noun}{many} {when}{whose} is reached."


def waits(limits: Limits, levels: Levels, expected: Expected, turnover_s: float) -> Waits:
    """`turnover_s` is how long a request runs, as a rule: places, and exposure beyond a whole bucket, come back by
    that."""
    requests, concurrent = limits.requests_per_minute, limits.concurrent
    return Waits(
        0.0 if requests is None else _until(1, levels.requests, requests),
        _until_tokens(limits.tokens_per_minute, levels, expected, turnover_s),
        0.0 if concurrent is None or levels.running < concurrent else turnover_s / concurrent,
    )


def _until_tokens(limit: int | None, levels: Levels, expected: Expected, turnover_s: float) -> float:
    if limit is None or not expected.most_tokens:
        return 0.0
    wait = _until(expected.tokens, levels.tokens, limit)
    exposed = turnover_s if levels.exposure > limit else _until(levels.exposure, levels.tokens, limit)
    return max(wait, exposed)


def _until(wanted: float, level: float, limit: int) -> float:
    return seconds_for(wanted - level, limit / WINDOW_S)


def standings(scope: Scope, levels: Levels, refused: Waits = NO_WAITS) -> tuple[Standing, ...]:
    limits, of_model = scope.limits, scope.model is not None
    told: list[Standing] = []
    if (limit := limits.requests_per_minute) is not None:
        told.append(_of_bucket(_REQUESTS, limit, levels.requests, of_model, refused.requests))
    if (limit := limits.tokens_per_minute) is not None:
        told.append(_of_bucket(_TOKENS, limit, levels.tokens, of_model, refused.tokens))
    if (limit := limits.concurrent) is not None:
        left = limit - levels.running
        told.append(Standing(_CONCURRENT, limit, left if left > 0 else 0, 0.0, of_model, refused.concurrent or None))
    return tuple(told)


def _of_bucket(kind: Kind, limit: int, level: float, of_model: bool, wait_s: float) -> Standing:
    missing = limit - level
    full_in_s = missing / (limit / WINDOW_S) if missing > 0 else 0.0
    return Standing(kind, limit, int(level) if level > 0 else 0, full_in_s, of_model, wait_s or None)
