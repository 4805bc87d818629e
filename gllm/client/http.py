"""What both clients say and allow on every connection, and how they take an answer."""

from ipaddress import ip_address
from typing import TypeVar

import httpx

import gllm
from gllm.client.answers import Read
from gllm.client.call import LONGEST_S
from gllm.client.errors import BrokenAnswer, of_answer

T = TypeVar("T")

LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""Who may ask how much at once is the gateway's business; calls that wait here would not be seen there."""

LOAD_S = 1_800.0
"""GLLM's server answered before it loaded anything. Ours answers when the model is there, or when it cannot be."""
RELEASE_S = 300.0
"""Answered when the memory is really free, after what runs has ended."""
COMMAND_S = 10.0
GIVE_UP_S = 2.0
LEAST_CHECK_S = 0.1
LONGEST_CHECK_S = 5.0


def headers(api_key: str | None) -> dict[str, str]:
    said = {"User-Agent": f"gllm-python/{gllm.__version__}", "Accept": "application/json, text/event-stream"}
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("api_key must be one line of ASCII characters.")
    return {**said, "Authorization": f"Bearer {key}"} if key else said


def may_be_proxied(url: str) -> bool:
    """Whether the environment's proxies are meant: none stands before this machine itself."""
    host = httpx.URL(url).host
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def command_limit(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not timeout > 0:
        raise ValueError(f"timeout must be more than 0, not {timeout}")
    return min(timeout, LONGEST_S)


def check_limit(left_s: float, interval_s: float) -> float:
    """How long one look at the server's health may take."""
    return max(LEAST_CHECK_S, min(left_s, max(interval_s, 1.0), LONGEST_CHECK_S))


def read_answer(answer: httpx.Response, body: bytes, read: Read[T]) -> T:
    if answer.status_code != 200:
        raise of_answer(answer.status_code, answer.headers, body)
    try:
        return read(body)
    except BrokenAnswer as error:
        error.status, error.request_id = answer.status_code, answer.headers.get("x-request-id")
        raise
