"""From bytes and headers to a `Call`: what is asked, of which model, by when, and what the engine gets to read."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from app.cluster.fleet import Fleet
from app.errors import InvalidRequest, WrongMediaType
from app.generation import Call, Route
from app.reliability.fingerprint import fingerprint
from app.tenant import ANONYMOUS, Priority, Tenant
from app.trace import Trace
from app.wire.continuation import continuable
from app.wire.edits import put_fields
from app.wire.fields import StreamOptions
from app.wire.headers import idempotency_key, last_event_id, session_id, trace_context
from app.wire.parsing import parse
from app.wire.requests import AnyRequest, ChatRequest, CompletionRequest, MessagesRequest, ResponsesRequest, Sampled

Headers = Mapping[bytes, bytes]
PrefixOf = Callable[[AnyRequest, str, Tenant], tuple[int, ...]]
"""What the choice of a replica is to know of a prompt for this model."""

_DEADLINE = re.compile(rb"[0-9]{1,9}")
_ANSWERED_IN_TOKENS = (ChatRequest, CompletionRequest, ResponsesRequest, MessagesRequest)
_PRIORITIES = {each.name.lower().encode(): each for each in Priority}


@dataclass(frozen=True)
class Defaults:
    """What the operator sets for requests that leave it out; `None` leaves it to the engine."""

    max_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Intake:
    fleet: Fleet
    defaults: Defaults
    max_choices: int
    timeout_s: float
    counts_along: bool = False
    """The engines understand `continuous_usage_stats`."""
    prefix_of: PrefixOf | None = None
    takes_over: bool = False
    """Streams go on at another replica when theirs dies."""

    def call(
        self,
        route: Route,
        request_id: str,
        body: bytes,
        headers: Headers,
        now: float,
        tenant: Tenant = ANONYMOUS,
        trace: Trace | None = None,
    ) -> Call:
        """`trace`: the request's own place in its trace; without one of ours the engine gets the client's."""
        request = parse(route, body)
        choices = prompts = 1
        max_tokens: int | None = None
        temperature: float | None = None
        stream = shows_usage = counts_along = False
        added: dict[str, Any] = {}
        if isinstance(request, Sampled):
            prompts = _prompts(request)
            choices = self._choices(request) * prompts
            added = self._defaults(request)
            temperature = added.get("temperature", request.temperature)
        if isinstance(request, _ANSWERED_IN_TOKENS):
            stream = bool(request.stream)
            max_tokens = added.get("max_tokens", request.output_limit())
        model = self.fleet.resolve(request.model, tenant)
        if request.model is None:
            added["model"] = model
        if stream and isinstance(request, Sampled):
            shows_usage, counts_along = self._counts(request.stream_options, added)
        key, seen = _resumable(headers)
        place = trace or trace_context(headers)
        return Call(
            id=request_id,
            route=route,
            model=model,
            body=put_fields(body, **added) if added else body,
            expires_at=now + self._time_allowed(headers),
            stream=stream,
            shows_usage=shows_usage,
            counts_along=counts_along,
            continuable=self.takes_over and counts_along and continuable(request),
            prompt_bytes=len(body),
            max_tokens=max_tokens,
            temperature=temperature,
            choices=choices,
            prompts=prompts,
            traceparent=None if place is None else place.traceparent,
            tracestate="" if place is None else place.state,
            tenant=tenant,
            priority=_priority(headers, tenant),
            key=key,
            fingerprint=b"" if key is None else fingerprint(body),
            seen=seen if stream else 0,
            session=session_id(headers[b"x-session-id"]) if b"x-session-id" in headers else "",
            prefix=() if self.prefix_of is None else self.prefix_of(request, model, tenant),
        )

    def _counts(self, options: StreamOptions | None, added: dict[str, Any]) -> tuple[bool, bool]:
        """Whether a stream's client sees its usage, and whether each event tells it, for us alone. Every stream is
        counted: what has to be said for that is `added`."""
        shows_usage = options is not None and bool(options.include_usage)
        along = self.counts_along and not (shows_usage and options and options.continuous_usage_stats)
        if not shows_usage or along:
            added["stream_options"] = _counting(options, along=along)
        return shows_usage, along

    def _choices(self, request: Sampled) -> int:
        for name in ("n", "best_of"):
            if (getattr(request, name) or 1) > self.max_choices:
                text = f"At most {self.max_choices} choices are made for one request."
                raise InvalidRequest(text, param=name, code="invalid_value")
        return request.n or 1

    def _defaults(self, request: Sampled) -> dict[str, Any]:
        added: dict[str, Any] = {}
        if self.defaults.max_tokens is not None and request.output_limit() is None:
            added["max_tokens"] = self.defaults.max_tokens
        if self.defaults.temperature is not None and request.temperature is None:
            added["temperature"] = self.defaults.temperature
        return added

    def _time_allowed(self, headers: Headers) -> float:
        asked = headers.get(b"x-request-timeout-ms")
        if asked is None:
            return self.timeout_s
        if _DEADLINE.fullmatch(asked) is None or int(asked) == 0:
            text = "Give whole milliseconds, more than 0."
            raise InvalidRequest(text, param="X-Request-Timeout-Ms", code="invalid_header")
        return min(self.timeout_s, int(asked) / 1e3)


def _priority(headers: Headers, tenant: Tenant) -> Priority:
    """What is asked, but no higher than the tenant may."""
    asked = headers.get(b"x-priority")
    if asked is None:
        return tenant.priority
    if asked not in _PRIORITIES:
        text = "Give 'interactive', 'normal' or 'batch'."
        raise InvalidRequest(text, param="X-Priority", code="invalid_header")
    return max(_PRIORITIES[asked], tenant.priority)


def _prompts(request: Sampled) -> int:
    """A completion may hold several, each answered."""
    if not isinstance(request, CompletionRequest) or isinstance(request.prompt, str):
        return 1
    return 1 if isinstance(request.prompt[0], int) else len(request.prompt)


def _counting(options: StreamOptions | None, *, along: bool) -> dict[str, Any]:
    """The client's options, except that the stream tells its usage: at its end, or `along` with each event too."""
    kept = msgspec.to_builtins(options) if options is not None else {}
    kept.pop("continuous_usage_stats", None)
    return {**kept, "include_usage": True, **({"continuous_usage_stats": True} if along else {})}


def check_media_type(headers: Headers) -> None:
    """JSON in UTF-8, as it is. A page in a browser cannot send that unasked, which keeps strangers' pages out."""
    kind = headers.get(b"content-type", b"")
    if kind != b"application/json":
        kind, _, parameters = kind.lower().partition(b";")
        charset = parameters.strip()
        if kind.strip() != b"application/json" or charset not in (b"", b"charset=utf-8", b'charset="utf-8"'):
            raise WrongMediaType
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise WrongMediaType


def _resumable(headers: Headers) -> tuple[str | None, int]:
    """The key, and how much of the answer the client has. Without a key there is nothing to go on with."""
    key = headers.get(b"idempotency-key")
    if key is None:
        return None, 0
    seen = headers.get(b"last-event-id")
    return idempotency_key(key), 0 if seen is None else last_event_id(seen)
