"""Limits in headers: the IETF draft's two (`RateLimit`, `RateLimit-Policy`), and those that OpenAI's clients read.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from app.tenant import Kind, Standing

Headers = list[tuple[bytes, bytes]]

_UNITS = {Kind.REQUESTS: b"", Kind.TOKENS: b';qu="tokens"', Kind.CONCURRENT: b';qu="concurrent-requests"'}
_WINDOWS = {Kind.REQUESTS: b";w=60", Kind.TOKENS: b";w=60", Kind.CONCURRENT: b""}
_OPENAIS = [
    (Kind.REQUESTS, b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    (Kind.TOKENS, b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
]
"""OpenAI's names, by what they count."""


def limit_headers(standing: Sequence[Standing]) -> Headers:
    """Of an answer or of a refusal; nothing where nothing is limited."""
    if not standing:
        return []
    headers = [
        (b"ratelimit-policy", b", ".join([_policy(each.kind, each.limit, each.of_model) for each in standing])),
        (b"ratelimit", b", ".join([_left(each) for each in standing])),
    ]
    for kind, limit, remaining, reset in _OPENAIS:
        alike = [each for each in standing if each.kind is kind]
        if alike:
            tightest = alike[0] if len(alike) == 1 else min(alike, key=_by_tightness)
            headers += (
                (limit, b"%d" % tightest.limit),
                (remaining, b"%d" % tightest.remaining),
                (reset, duration(tightest.reset_s)),
            )
    return headers


def _by_tightness(limit: Standing) -> tuple[float, int]:
    return -(limit.wait_s or 0.0), limit.remaining


@lru_cache(1_024)
def _policy(kind: Kind, limit: int, of_model: bool) -> bytes:
    return b"%b;q=%d%b%b" % (_name(kind, of_model), limit, _WINDOWS[kind], _UNITS[kind])


@lru_cache
def _name(kind: Kind, of_model: bool) -> bytes:
    return b'"model-%b"' % kind.encode() if of_model else b'"%b"' % kind.encode()


def _left(limit: Standing) -> bytes:
    """Where a limit refused, nothing is left of it for this request, and its time is the one in `Retry-After`."""
    name = _name(limit.kind, limit.of_model)
    if limit.wait_s is not None:
        return b"%b;r=0;t=%d" % (name, max(1, math.ceil(limit.wait_s)))
    if limit.kind is Kind.CONCURRENT:
        return b"%b;r=%d" % (name, limit.remaining)
    return b"%b;r=%d;t=%d" % (name, limit.remaining, math.ceil(limit.reset_s))


def duration(seconds: float) -> bytes:
    """As Go writes it, and so OpenAI: `12ms`, `1.5s`, `6m0s`. Rounded up, so that nobody comes too early."""
    ms = math.ceil(seconds * 1e3)
    if ms < 1_000:
        return b"%dms" % ms
    if ms < 60_000:
        return b"%gs" % (ms / 1e3)
    minutes, s = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return b"%dh%dm%ds" % (hours, minutes, s) if hours else b"%dm%ds" % (minutes, s)
