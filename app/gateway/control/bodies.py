"""Orders in a request's body: read within limits, and checked whole."""

import asyncio
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Request, Response
from msgspec import Meta
from starlette.requests import ClientDisconnect

from app.cluster.control import Order
from app.cluster.swap import Wish
from app.errors import BodyTooLarge, BodyTooSlow, ClientGone, InvalidRequest
from app.gateway.intake import check_media_type
from app.settings.values import base_url

T = TypeVar("T")

MOST_BYTES = 64 * 1024
BODY_S = 30.0

JSON = "application/json"

Word = Annotated[str, Meta(min_length=1, max_length=1_024, pattern=r"^[^\x00-\x1f\x7f]+$(?!\n)")]
"""`$` alone takes a line's end after it, and `\\Z` is none that a JSON schema may have."""
DrainS = Annotated[float, Meta(ge=0, le=86_400)]


class AddWorker(msgspec.Struct):
    """GLLM's README says `worker_url`, its code `address`."""

    address: Word | None = None
    worker_url: Word | None = None

    @property
    def url(self) -> str:
        given = self.address or self.worker_url
        if given is None:
            raise InvalidRequest("Give the worker's URL as 'address'.", param="address")
        try:
            return base_url(given)
        except ValueError:
            text = "Give the worker's base URL, like http://gpu-7:9000, and no password in it."
            raise InvalidRequest(text, param="address") from None


class LoadModel(msgspec.Struct, forbid_unknown_fields=True):
    model_path: Word
    force_reload: bool = False
    wait: bool = False
    """Answer when it is there, or cannot be. GLLM's clients expect an answer within ten seconds."""

    @property
    def wish(self) -> Wish:
        return Wish(Order(model=self.model_path), force=self.force_reload)


class NewModel(msgspec.Struct, forbid_unknown_fields=True):
    model: Word
    names: tuple[Word, ...] = ()
    args: tuple[Annotated[str, Meta(max_length=8_192)], ...] | None = None
    workers: Annotated[tuple[Word, ...], Meta(min_length=1)] | None = None
    count: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    floor: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    drain_s: DrainS | None = None
    force: bool = False
    wait: bool = False

    @property
    def wish(self) -> Wish:
        order = Order(model=self.model, names=self.names, args=self.args)
        return Wish(order, self.workers, self.count, self.floor, self.drain_s, self.force)


class Release(msgspec.Struct, forbid_unknown_fields=True):
    drain_s: DrainS | None = None


class NewAdapter(msgspec.Struct, forbid_unknown_fields=True):
    name: Word
    path: Word
    model: Word | None = None
    """The one it belongs on; where only one is served, that one."""


async def read(request: Request, kind: type[T], empty: T | None = None) -> T:
    """`empty`: what no body at all means."""
    data = await _whole(request)
    if not data and empty is not None:
        return empty
    check_media_type({name.lower(): value for name, value in request.headers.raw})
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The body does not fit: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The body is not valid JSON.") from None


def answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type=JSON)


async def _whole(request: Request) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                data += piece
                if len(data) > MOST_BYTES:
                    raise BodyTooLarge
    except TimeoutError:
        raise BodyTooSlow from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(data)
