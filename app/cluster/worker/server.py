"""A worker's control API (ADR 17): what `control.Worker` offers, over HTTP. Calls are few, so clarity goes first."""

import asyncio
import hmac
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from typing import Annotated, Any, TypeVar

import msgspec
import uvicorn
from fastapi import FastAPI, Request, Response
from msgspec import Meta
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.cluster.control import Adapter, Order, Worker, WorkerState
from app.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    GatewayError,
    InvalidRequest,
    MissingKey,
    NotAllowed,
    Unforeseen,
    UnknownPath,
    WrongKey,
    WrongMediaType,
    WrongMethod,
)
from app.wire.errors import error_json, row_of

LONGEST_WAIT_S = 60.0
MOST_LINES = 10_000
MAX_BODY_BYTES = 2**20
BODY_S = 30.0
HANG_UP_S = 0.02
"""In which a hang-up is heard that lay in the socket behind the order."""
LAST_WRITES_S = 2
"""For answers that are on their way when the server ends."""

JSON = "application/json"
OPEN = "/health"
"""Told to anybody."""

DrainS = Annotated[float, Meta(ge=0, le=86_400)]
T = TypeVar("T")


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    model_path: Annotated[str, Meta(min_length=1)]
    names: tuple[str, ...] = ()
    args: tuple[str, ...] | None = None
    id: str = ""
    force_reload: bool = False
    drain_s: DrainS | None = None


class ReleaseBody(msgspec.Struct, forbid_unknown_fields=True):
    drain_s: DrainS | None = None


class Health(msgspec.Struct):
    state: WorkerState
    reason: str


class Api:
    """The endpoints, as plain functions of a request."""

    def __init__(self, worker: Worker, drain_s: float) -> None:
        self._worker = worker
        self._drain_s = drain_s

    async def health(self) -> Response:
        status = await self._worker.status()
        return _answer(Health(status.state, status.reason), 200 if status.state is WorkerState.READY else 503)

    async def status(self, request: Request) -> Response:
        query = request.query_params
        after = _number(query, "after", -1, int)
        wait_s = _number(query, "wait_s", 0.0, float)
        return _answer(await self._worker.status(after, min(wait_s, LONGEST_WAIT_S)))

    async def load_model(self, request: Request) -> Response:
        body = await _body(request, LoadBody)
        order = Order(model=body.model_path, names=body.names, args=body.args, id=body.id)
        drain_s = self._drain_s if body.drain_s is None else body.drain_s
        status = await self._worker.load(order, drain_s=drain_s, force=body.force_reload)
        return _answer(status, 200 if status.state is WorkerState.READY else 202)

    async def release_gpus(self, request: Request) -> Response:
        body = await _body(request, ReleaseBody, empty=ReleaseBody())
        drain_s = self._drain_s if body.drain_s is None else body.drain_s
        return _answer(await self._worker.release(drain_s=drain_s))

    async def drain(self) -> Response:
        return _answer(await self._worker.drain())

    async def admit(self) -> Response:
        return _answer(await self._worker.admit())

    async def put_adapter(self, request: Request) -> Response:
        return _answer(await self._worker.put_adapter(await _body(request, Adapter)))

    async def drop_adapter(self, name: str) -> Response:
        return _answer(await self._worker.drop_adapter(name))

    async def logs(self, request: Request) -> Response:
        lines = min(_number(request.query_params, "lines", 100, int), MOST_LINES)
        follow = request.query_params.get("follow", "0") in ("1", "true")
        return StreamingResponse(self._worker.logs(lines, follow=follow), media_type="text/plain")


class Door:
    """Lets in who knows the secret; without one, who sits on this machine and is no web page."""

    def __init__(self, app: ASGIApp, secret: str | None) -> None:
        self._app = app
        self._digest = sha256(secret.encode()).digest() if secret else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and scope["path"] != OPEN:
                self._check(dict(scope["headers"]))
        except GatewayError as error:
            await _refusal(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, headers: Mapping[bytes, bytes]) -> None:
        if self._digest is None:
            if b"origin" in headers:
                raise NotAllowed("A worker without a secret takes nothing from web pages.")
            return
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not shown:
            raise MissingKey("This worker wants the cluster's secret: 'Authorization: Bearer CLUSTER_SECRET'.")
        if not hmac.compare_digest(sha256(shown.strip()).digest(), self._digest):
            raise WrongKey("This is not the cluster's secret.")


def create_app(worker: Worker, *, secret: str | None, drain_s: float) -> ASGIApp:
    api = Api(worker, drain_s)
    app = FastAPI(redirect_slashes=False, docs_url=None, redoc_url=None, openapi_url=None)
    for path, methods, endpoint in (
        (OPEN, ["GET", "POST"], api.health),
        ("/status", ["GET"], api.status),
        ("/load_model", ["POST"], api.load_model),
        ("/release_gpus", ["POST"], api.release_gpus),
        ("/drain", ["POST"], api.drain),
        ("/admit", ["POST"], api.admit),
        ("/adapters", ["POST"], api.put_adapter),
        ("/adapters/{name:path}", ["DELETE"], api.drop_adapter),
        ("/logs", ["GET"], api.logs),
    ):
        app.add_api_route(path, endpoint, methods=methods)
    for kind in (GatewayError, HTTPException, Exception):  # of the last, FastAPI's server still logs where it was
        app.add_exception_handler(kind, _lost)
    return Door(app, secret)


@asynccontextmanager
async def serving(app: ASGIApp, listening: socket.socket) -> AsyncIterator[None]:
    """Answers within the block; leaving it waits for those that are on their way."""
    config = uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=LAST_WRITES_S,
    )
    server = _Server(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve(sockets=[listening]))
        try:
            yield
        finally:
            server.should_exit = True


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are whoever's who runs the worker."""
        yield


async def _body(request: Request, kind: type[T], empty: T | None = None) -> T:
    data = await _read(request)
    if await _has_hung_up(request):
        raise ClientGone
    if not data and empty is not None:
        return empty
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise WrongMediaType
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The body does not fit: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The body is not valid JSON.") from None


async def _has_hung_up(request: Request) -> bool:
    """Whoever gives an order while we stand still takes us for lost, and takes back what it was part of."""
    await asyncio.sleep(HANG_UP_S)
    return await request.is_disconnected()


async def _read(request: Request) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                data += piece
                if len(data) > MAX_BODY_BYTES:
                    raise BodyTooLarge
    except TimeoutError:
        raise BodyTooSlow from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(data)


N = TypeVar("N", int, float)


def _number(query: Mapping[str, str], name: str, default: N, kind: type[N]) -> N:
    try:
        value = kind(query.get(name, default))
    except ValueError:
        raise InvalidRequest(f"{name} must be a number.", param=name) from None
    if not -1 <= value < 2**53:
        raise InvalidRequest(f"{name} is out of bounds.", param=name)
    return value


def _answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type=JSON)


async def _lost(request: Request, error: Exception) -> Response:
    match error:
        case GatewayError():
            return _refusal(error)
        case HTTPException(status_code=404):
            return _refusal(UnknownPath())
        case HTTPException(status_code=405, headers=headers):
            return _refusal(WrongMethod(allow=", ".join(sorted((headers or {}).get("Allow", "GET").split(", ")))))
        case HTTPException():
            return _refusal(InvalidRequest())
        case _:
            return _refusal(Unforeseen())


def _refusal(error: GatewayError) -> Response:
    headers = {"allow": error.allow} if isinstance(error, WrongMethod) else None
    return Response(error_json(error), row_of(error).status, headers, JSON)
