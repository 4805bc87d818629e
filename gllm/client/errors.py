"""What can go wrong with a call, in the server's own words, and whether sending it again can help."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

QUOTED_CHARS = 200
"""As much is shown of an answer that has no error message in it."""


class RemoteError(Exception):
    """The root. Whatever the server said about it is here; what it did not say is `None`."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        error_type: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        """The server's name for it: 'queue_full', 'model_not_found'."""
        self.type = error_type
        self.param = param
        self.request_id = request_id
        """The same request in the server's logs."""
        self.retry_after = retry_after
        """Seconds until the server may have room again."""
        self.retryable = retryable
        """The same request may succeed later. The client has tried already, as often as its limits allow."""

    def __str__(self) -> str:
        named = (("status", self.status), ("code", self.code), ("request", self.request_id))
        known = ", ".join(f"{name} {value}" for name, value in named if value is not None)
        return f"{self.message} ({known})" if known else self.message


class ConnectionFailed(RemoteError):
    """The server could not be reached, or the connection was lost before its answer was complete."""


class TimedOut(RemoteError, TimeoutError):
    """The call's time was over, by the server's clock or by ours."""


class BrokenAnswer(RemoteError):
    """What came is no answer to what was asked."""


class StreamBroken(RemoteError):
    """A stream ended without its end, and could not be resumed."""


class Refused(RemoteError):
    """4xx: the request itself has to change."""


class AuthenticationFailed(Refused):
    """401, 403: no key, a wrong key, or one that may not do this."""


class NotFound(Refused):
    """404: no such model, or no such path."""


class Conflict(Refused):
    """409, 422 of an idempotency key: it is in use, or was used for something else, or its answer is not kept."""


class RateLimited(Refused):
    """429: the caller's own limit."""


class ServerFailed(RemoteError):
    """5xx."""


class Overloaded(ServerFailed):
    """503: full, draining, or no replica is ready."""


class LoadRefused(RemoteError, ValueError):
    """The model was not loaded. A `ValueError`, as GLLM's users know it."""


_KINDS: dict[int, type[RemoteError]] = {
    401: AuthenticationFailed,
    403: AuthenticationFailed,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
    503: Overloaded,
    504: TimedOut,
}
_MAY_SUCCEED_LATER = frozenset((408, 429, 502, 503, 504))
_CONFLICT = "idempotency_error"
_IN_PROGRESS = "idempotency_in_progress"
DEADLINE_CODE = "deadline_exceeded"


def of_answer(
    status: int, headers: Mapping[str, str], body: bytes, kind: type[RemoteError] | None = None
) -> RemoteError:
    """What an answer that is no success says. `kind` where the call has an error of its own."""
    said = _said(body)
    code = said.get("code")
    may_succeed = status in _MAY_SUCCEED_LATER or (status == 409 and code == _IN_PROGRESS)
    return (kind or _kind(status, said))(
        said["message"] or f"The server answered with status {status}.",
        status=status,
        code=code,
        error_type=said.get("type"),
        param=said.get("param"),
        request_id=headers.get("x-request-id"),
        retry_after=seconds_of(headers.get("retry-after")),
        retryable=may_succeed and headers.get("x-should-retry") != "false",
    )


def of_event(payload: bytes, request_id: str | None) -> RemoteError | None:
    """What a stream's event says, if it is one about a failure: then it is the last."""
    if b'"error"' not in payload:
        return None
    try:
        event = json.loads(payload)
    except ValueError:
        return None
    if not isinstance(event, dict) or not event.get("error"):
        return None
    said = _said(payload)
    kind = TimedOut if said.get("code") == DEADLINE_CODE else RemoteError
    return kind(
        said["message"] or "The stream ended with an error.",
        code=said.get("code"),
        error_type=said.get("type"),
        param=said.get("param"),
        request_id=request_id,
    )


def seconds_of(retry_after: str | None) -> float | None:
    """Seconds, or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


@contextmanager
def translated() -> Iterator[None]:
    """httpx's errors as ours."""
    try:
        yield
    except httpx.HTTPError as error:
        raise _of_transport(error) from error


def _of_transport(error: httpx.HTTPError) -> RemoteError:
    told = str(error) or type(error).__name__
    match error:
        case httpx.ConnectTimeout() | httpx.ConnectError() | httpx.PoolTimeout():
            return ConnectionFailed(f"The server could not be reached: {told}", retryable=True)
        case httpx.TimeoutException():
            return TimedOut(f"The server did not answer in time: {told}", retryable=True)
        case httpx.NetworkError() | httpx.RemoteProtocolError():
            return ConnectionFailed(f"The connection was lost: {told}", retryable=True)
    return ConnectionFailed(f"The request could not be sent: {told}")


def _kind(status: int, said: Mapping[str, Any]) -> type[RemoteError]:
    if said.get("type") == _CONFLICT:
        return Conflict
    return _KINDS.get(status, ServerFailed if status >= 500 else Refused if status >= 400 else BrokenAnswer)


def _said(body: bytes) -> dict[str, Any]:
    """OpenAI's error object; of anything else the beginning. There is always a message, and what is no text is none."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        text = error if isinstance(error, str) else body[:QUOTED_CHARS].decode(errors="replace").strip()
        return {"message": text}
    said = {name: value for name, value in error.items() if isinstance(value, str)}
    return {"message": "", **said}
