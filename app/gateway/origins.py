"""Pages of other origins: their browser asks whether they may, and keeps from them every answer that does not say so.

Around the edge, and only where the operator names origins: nobody else pays for it.
"""

from collections.abc import Collection

from app.gateway.answers import Headers, Send
from app.gateway.edge import Edge, Scope
from app.gateway.lifeline import Receive

OPEN_TO_PAGES = "/v1/"
"""What commands workers, or shows operators what goes on, is no business of a page."""

_ASKS_FIRST = b"access-control-request-method"
_WANTS_TO_SEND = b"access-control-request-headers"
_REMEMBERED_S = 600


class Origins:
    def __init__(self, edge: Edge, allowed: Collection[str]) -> None:
        """`allowed`: such as `https://chat.example.com`; `*` is any."""
        self._edge = edge
        self._allowed = frozenset(each.encode() for each in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        origin: bytes | None = headers.get(b"origin")
        if origin is None or not self._may_ask(origin, scope["path"]):
            await self._edge(scope, receive, send)
        elif scope["method"] == "OPTIONS" and _ASKS_FIRST in headers:
            said = [*_allowed_for(origin), *_preflight(headers.get(_WANTS_TO_SEND))]
            await send({"type": "http.response.start", "status": 204, "headers": said})
            await send({"type": "http.response.body"})
        else:
            await self._answer(origin, scope, receive, send)

    def _may_ask(self, origin: bytes, path: str) -> bool:
        return path.startswith(OPEN_TO_PAGES) and not self._allowed.isdisjoint((origin, b"*"))

    async def _answer(self, origin: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_allowed_for(origin)]
            await send(message)

        # Without what our server offers beside ASGI: by that way the answer's head would pass us by.
        await self._edge({**scope, "extensions": {}}, receive, told)


def _allowed_for(origin: bytes) -> Headers:
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"origin"),
    ]


def _preflight(wanted: bytes | None) -> Headers:
    """The methods that are there, and whatever headers its SDK sends: the door reads them, as everybody's."""
    said = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
        (b"access-control-max-age", b"%d" % _REMEMBERED_S),
    ]
    return said if wanted is None else [*said, (b"access-control-allow-headers", wanted)]
