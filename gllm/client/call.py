"""One call as its caller sees it, however many requests it takes: one key, one deadline, one policy."""

import asyncio
import json
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypedDict, get_args

import httpx
from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception

from gllm.client.errors import DEADLINE_CODE, RemoteError, TimedOut
from gllm.client.retries import Retries, RetryBudget

Priority = Literal["interactive", "normal", "batch"]

PATIENCE_S = 1_000.0
"""Without a time limit: so long a server may be silent, retries included. GLLM's own."""
CONNECT_S = 5.0
SLACK_S = 0.25
"""An answer about a deadline may come this much after it: it knows more than our own verdict."""
LONGEST_S = 999_999.0
"""What the header can say, and a socket can wait."""


class CallOptions(TypedDict, total=False):
    """What every call may be given."""

    timeout_s: float | None
    """For everything: waiting, retries, and the engine's work, which is stopped when it is over."""
    priority: Priority | None
    session_id: str | None
    """Calls of one session go to one replica, which may have their past in its cache."""
    extra_body: Mapping[str, Any] | None
    """More fields of the body, as they are."""
    idempotency_key: str | None
    """One of your own: the call is answered once, also if another process sends it again."""


class Call:
    def __init__(
        self,
        path: str,
        body: Mapping[str, Any],
        retries: Retries,
        budget: RetryBudget,
        *,
        timeout_s: float | None = None,
        priority: Priority | None = None,
        session_id: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, not {timeout_s}")
        if priority is not None and priority not in get_args(Priority):
            raise ValueError(f"Unknown priority: {priority!r}, must be one of {', '.join(get_args(Priority))}")
        self.path = path
        self.body = json.dumps({**body, **(extra_body or {})}, allow_nan=False).encode()
        self.key = idempotency_key or str(uuid.uuid4())
        self._retries = retries
        self._budget = budget
        self._own_deadline = timeout_s is not None
        self._expires_at = retries.clock() + (PATIENCE_S if timeout_s is None else min(timeout_s, LONGEST_S))
        self._headers = {"Content-Type": "application/json", "Idempotency-Key": self.key}
        if priority is not None:
            self._headers["X-Priority"] = priority
        if session_id is not None:
            self._headers["X-Session-Id"] = session_id
        budget.deposit()

    def request(self, http: httpx.Client | httpx.AsyncClient, url: str, seen: int = 0) -> httpx.Request:
        """Of its next attempt. `seen`: so many events of its stream are there already."""
        left_s = self.left_s()
        if left_s <= 0:
            raise _time_is_over()
        headers = dict(self._headers)
        if self._own_deadline:
            headers["X-Request-Timeout-Ms"] = str(max(1, round(left_s * 1e3)))
        if seen:
            headers["Last-Event-ID"] = str(seen)
        limit_s = left_s + SLACK_S
        timeout = httpx.Timeout(limit_s, connect=min(CONNECT_S, limit_s))
        return http.build_request("POST", url + self.path, content=self.body, headers=headers, timeout=timeout)

    def left_s(self) -> float:
        return self._expires_at - self._retries.clock()

    def check_time(self) -> None:
        """Between two reads: a server that drips keeps each of them short."""
        if self.left_s() + SLACK_S <= 0:
            raise _time_is_over()

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """The same, for reads that can be interrupted."""
        try:
            async with asyncio.timeout(self.left_s() + SLACK_S):
                yield
        except TimeoutError as error:
            if isinstance(error, RemoteError):
                raise
            raise _time_is_over() from None

    def progressed(self) -> None:
        """Something came. Who set no deadline is patient anew."""
        if not self._own_deadline:
            self._expires_at = self._retries.clock() + PATIENCE_S

    # --- trying again ---------------------------------------------------------------------------------------------

    def retrying(self, sleep: Callable[[float], None]) -> Retrying:
        return Retrying(
            sleep=sleep,
            retry=retry_if_exception(self._may_succeed),
            wait=self._pause,
            stop=_is_over,
            reraise=True,
        )

    def retrying_async(self, sleep: Callable[[float], Awaitable[None]]) -> AsyncRetrying:
        return AsyncRetrying(
            sleep=sleep,
            retry=retry_if_exception(self._may_succeed),
            wait=self._pause,
            stop=_is_over,
            reraise=True,
        )

    def _may_succeed(self, error: BaseException) -> bool:
        """A deadline of the caller's own that has passed has passed."""
        if not isinstance(error, RemoteError) or not error.retryable:
            return False
        return not (self._own_deadline and error.status == 504)

    def _pause(self, state: RetryCallState) -> float:
        error = state.outcome and state.outcome.exception()
        return self.pause_after(state.attempt_number, error.retry_after if isinstance(error, RemoteError) else None)

    def pause_after(self, attempt: int, retry_after: float | None) -> float:
        """Infinite where there is to be no other attempt."""
        if attempt > self._retries.most:
            return math.inf
        pause = (retry_after or 0.0) + self._retries.pause_after(attempt)
        if pause >= self.left_s():
            return math.inf
        turn = self._budget.withdraw()
        if turn is None or turn >= self.left_s():
            return math.inf
        return max(pause, turn)


def _time_is_over() -> TimedOut:
    return TimedOut("The call's time is over.", code=DEADLINE_CODE)


def _is_over(state: RetryCallState) -> bool:
    return state.upcoming_sleep == math.inf
