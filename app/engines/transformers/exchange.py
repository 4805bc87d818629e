"""One request and its answer, as ASGI messages."""

import asyncio
import math
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from app.engines.transformers.orders import Order
from app.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    GatewayError,
    MissingKey,
    WrongKey,
    WrongMediaType,
    WrongMethod,
)
from app.wire.errors import error_event, error_json, row_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 16 * 1024 * 1024
BODY_TIME_S = 30.0
STALLED_READER_S = 60.0
JSON = [(b"content-type", b"application/json")]
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:\-]{1,128}")


@dataclass
class Exchange:
    """One request and its answer."""

    scope: Scope
    receive: Receive
    _send: Send
    id: str
    size: int = 0
    begun: bool = False
    status: int = 0
    error: str = ""
    """The class of what it ended with."""
    interrupted: bool = False
    """It had begun to answer by then."""
    model: str = ""
    """As it was asked for."""
    answer_id: str = ""
    order: Order | None = None
    """What the batch is given to do for it."""
    prompt_tokens: int = 0
    """Of what is not for the batch."""

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.scope["headers"] if key == name), None)

    async def body(self) -> bytes:
        kind = (self.header(b"content-type") or b"application/json").split(b";")[0].strip().lower()
        if kind != b"application/json" or self.header(b"content-encoding"):
            raise WrongMediaType
        declared = self.header(b"content-length") or b"0"
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            raise BodyTooLarge
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_TIME_S):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    parts.append(message.get("body", b""))
                    self.size += len(parts[-1])
                    if self.size > MAX_BODY_BYTES:
                        raise BodyTooLarge
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise BodyTooSlow from None

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun, self.status = True, status
        named = [*headers, (b"x-request-id", self.id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": named})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Waits while the client reads too slowly, but not for ever."""
        try:
            async with asyncio.timeout(STALLED_READER_S):
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            raise ClientGone from None

    async def answer(self, data: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] = JSON) -> None:
        await self.begin(status, [*headers, (b"content-length", str(len(data)).encode())])
        await self.write(data, more=False)

    async def fail(self, error: GatewayError) -> None:
        """Honest JSON while that is possible; then one event, and no `[DONE]`."""
        self.error, self.interrupted = type(error).__name__, self.begun
        if self.begun:
            await self.write(error_event(error), more=False)
            return
        headers = list(JSON)
        if error.retry_after is not None:
            headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
        if isinstance(error, WrongMethod):
            headers.append((b"allow", error.allow.encode()))
        if isinstance(error, MissingKey | WrongKey):
            headers.append((b"www-authenticate", b"Bearer"))
        await self.answer(error_json(error), row_of(error).status, headers)


def request_id(scope: Scope) -> str:
    """The caller's own where it is one."""
    for key, value in scope["headers"]:
        if key == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return secrets.token_hex(16)
