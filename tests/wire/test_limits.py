"""Limits in headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.tenant import Kind, Standing
from app.wire.limits import duration, limit_headers

REQUESTS = Standing(Kind.REQUESTS, 60, 59, 1.0)
TOKENS = Standing(Kind.TOKENS, 10_000, 9_000, 6.0)
PLACES = Standing(Kind.CONCURRENT, 8, 7, 0.0)


def test_without_limits_nothing_is_said() -> None:
    assert limit_headers(()) == []


def test_each_limit_is_told_in_the_drafts_words_and_in_openais() -> None:
    assert dict(limit_headers((REQUESTS, TOKENS, PLACES))) == {
        b"ratelimit-policy": b'"requests";q=60;w=60, "tokens";q=10000;w=60;qu="tokens", '
        b'"concurrent";q=8;qu="concurrent-requests"',
        b"ratelimit": b'"requests";r=59;t=1, "tokens";r=9000;t=6, "concurrent";r=7',
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
        b"x-ratelimit-limit-tokens": b"10000",
        b"x-ratelimit-remaining-tokens": b"9000",
        b"x-ratelimit-reset-tokens": b"6s",
    }


def test_places_alone_are_no_matter_of_openais_headers() -> None:
    assert [name for name, _ in limit_headers((PLACES,))] == [b"ratelimit-policy", b"ratelimit"]


def test_of_two_limits_of_one_kind_the_tightest_is_told_to_openais_clients() -> None:
    of_model = Standing(Kind.REQUESTS, 10, 3, 42.0, of_model=True)
    headers = dict(limit_headers((REQUESTS, of_model)))
    assert headers[b"ratelimit"] == b'"requests";r=59;t=1, "model-requests";r=3;t=42'
    assert headers[b"ratelimit-policy"] == b'"requests";q=60;w=60, "model-requests";q=10;w=60'
    assert headers[b"x-ratelimit-limit-requests"] == b"10"
    assert headers[b"x-ratelimit-remaining-requests"] == b"3"


def test_a_limit_that_refused_has_nothing_left_until_retry_after() -> None:
    refused = Standing(Kind.TOKENS, 10_000, 400, 57.6, wait_s=2.4)
    headers = dict(limit_headers((REQUESTS, refused)))
    assert headers[b"ratelimit"] == b'"requests";r=59;t=1, "tokens";r=0;t=3'
    assert headers[b"x-ratelimit-remaining-tokens"] == b"400"
    assert headers[b"x-ratelimit-reset-tokens"] == b"57.6s"


def test_of_two_limits_the_one_that_refused_is_the_tightest() -> None:
    refused = Standing(Kind.TOKENS, 10_000, 400, 57.6, wait_s=2.4)
    tight = Standing(Kind.TOKENS, 500, 200, 36.0, of_model=True)
    assert dict(limit_headers((tight, refused)))[b"x-ratelimit-limit-tokens"] == b"10000"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0, b"0ms"),
        (0.0117, b"12ms"),
        (0.9999, b"1s"),
        (1.5, b"1.5s"),
        (7.66, b"7.66s"),
        (59.9999, b"1m0s"),
        (360.0, b"6m0s"),
        (86.4, b"1m27s"),
        (3_600.0, b"1h0m0s"),
        (90_061.0, b"25h1m1s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, told: bytes) -> None:
    assert duration(seconds) == told


@given(st.floats(0, 10**7))
def test_a_duration_is_never_shorter_than_the_time(seconds: float) -> None:
    total, number = 0.0, ""
    text = duration(seconds).decode().replace("ms", "u")
    for letter in text:
        if letter in "hmsu":
            total += float(number) * {"h": 3_600, "m": 60, "s": 1, "u": 0.001}[letter]
            number = ""
        else:
            number += letter
    assert total >= seconds - 1e-6
    assert total <= seconds + 1.001


STANDING = st.builds(
    Standing,
    st.sampled_from(Kind),
    st.integers(1, 10**12),
    st.integers(0, 10**12),
    st.floats(0, 10**6),
    st.booleans(),
    st.one_of(st.none(), st.floats(0.001, 10**6)),
)


@given(st.lists(STANDING, max_size=6).map(tuple))
def test_headers_are_what_http_allows(standing: tuple[Standing, ...]) -> None:
    for name, value in limit_headers(standing):
        assert name == name.lower()
        assert value
        assert all(32 <= byte < 127 for byte in value)
