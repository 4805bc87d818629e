"""Limits in headers: the IETF draft's two (`RateLimit`, `RateLimit-Policy`), and those that OpenAI's clients read.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from app.tenant import Kind, Standing

Headers = list[tuple[bytes, bytes]]

_UNITS = {Kind.REQUESTS: b"", Kind.TOKENS: b';qu="tokens"', Kind.CONCURRENT: b';qu="concurrent-requests"'}
_WINDOWS = {Kind.REQUESTS: b";w=60", Kind.TOKENS: b";w=60", Kind.CONCURRENT: b""}
_CONCURRENT = Kind.CONCURRENT
_GAPS = {Kind.REQUESTS: b";r=%d;t=%d", Kind.TOKENS: b";r=%d;t=%d", Kind.CONCURRENT: b";r=%d"}
_OPENAIS = {
    Kind.REQUESTS: (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    Kind.TOKENS: (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
}
"""OpenAI's names, by what they count."""

_Limit = tuple[Kind, int, bool, bool]
"""Its kind, its limit, whether of one model, whether it refused."""


class _Form(NamedTuple):
    """What headers say of some limits, whatever is left of them."""

    policy: tuple[bytes, bytes]
    left: bytes
    """With gaps for numbers."""
    openais: list[tuple[list[int], bytes, bytes, bytes]]
    """Which limits count the same, and the names of the headers of the tightest."""


def limit_headers(standing: Sequence[Standing]) -> Headers:
    """Of an answer or of a refusal; nothing where nothing is limited.

    Where a limit refused, nothing is left of it for this request, and its time is the one in `Retry-After`.
    """
    if not standing:
        return []
    form = _form(tuple([(each.kind, each.limit, each.of_model, each.wait_s is not None) for each in standing]))
    left: list[int] = []
    for each in standing:
        if each.wait_s is not None:
            left.append(max(1, math.ceil(each.wait_s)))
        elif each.kind is _CONCURRENT:
            left.append(each.remaining)
        else:
            left += (each.remaining, math.ceil(each.reset_s))
    headers = [form.policy, (b"ratelimit", form.left % tuple(left))]
    for alike, limit, remaining, reset in form.openais:
        tightest = standing[alike[0]] if len(alike) == 1 else min([standing[at] for at in alike], key=_by_tightness)
        headers += (
            (limit, b"%d" % tightest.limit),
            (remaining, b"%d" % tightest.remaining),
            (reset, duration(tightest.reset_s)),
        )
    return headers


def _by_tightness(limit: Standing) -> tuple[float, int]:
    return -(limit.wait_s or 0.0), limit.remaining


@lru_cache(1_024)
def _form(limits: tuple[_Limit, ...]) -> _Form:
    policies, gaps = [], []
    for kind, limit, of_model, refused in limits:
        name = b'"model-%b"' % kind.encode() if of_model else b'"%b"' % kind.encode()
        policies.append(b"%b;q=%d%b%b" % (name, limit, _WINDOWS[kind], _UNITS[kind]))
        gaps.append(name + (b";r=0;t=%d" if refused else _GAPS[kind]))
    openais = [
        (alike, *names)
        for counted, names in _OPENAIS.items()
        if (alike := [at for at, (kind, *_) in enumerate(limits) if kind is counted])
    ]
    return _Form((b"ratelimit-policy", b", ".join(policies)), b", ".join(gaps), openais)


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
