"""The HTTP side: OpenAI's endpoints, health and metrics, for one model."""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route as Path

from app.engines.transformers import answers
from app.engines.transformers.choice import Choice
from app.engines.transformers.engine import Engine, Feed
from app.engines.transformers.exchange import Exchange, Receive, Scope, Send, request_id
from app.engines.transformers.hangup import unless_hung_up
from app.engines.transformers.orders import Intake, Order
from app.errors import (
    ClientGone,
    GatewayError,
    MissingKey,
    Unforeseen,
    UnknownModel,
    UnknownPath,
    WrongKey,
    WrongMethod,
)
from app.generation import Route
from app.wire.parsing import parse
from app.wire.requests import AnyRequest, ChatRequest, CompletionRequest
from app.wire.sse import DONE

if TYPE_CHECKING:
    from app.engines.transformers.tracing import Tracer

log = logging.getLogger(__name__)

T = TypeVar("T")
Handle = Callable[[Exchange], Awaitable[None]]

LONG_BODY_BYTES = 8 * 1024
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


class Api:
    """The endpoints, as plain functions of an exchange."""

    def __init__(self, engine: Engine, version: str) -> None:
        self._engine = engine
        self._intake = Intake(engine.model, engine.context)
        self._version = version

    async def chat(self, exchange: Exchange) -> None:
        request = await self._parsed(exchange, Route.CHAT)
        assert isinstance(request, ChatRequest)
        id_ = exchange.answer_id = f"chatcmpl-{exchange.id}"
        order = await self._off_loop(exchange, self._intake.chat, request, f"{id_}-{secrets.token_hex(4)}")
        engine = self._engine
        writer = answers.ChatWriter(order, id_, _now(), engine.name, engine.model.tokens)
        await self._generate(exchange, order, writer)

    async def completions(self, exchange: Exchange) -> None:
        request = await self._parsed(exchange, Route.COMPLETIONS)
        assert isinstance(request, CompletionRequest)
        id_ = exchange.answer_id = f"cmpl-{exchange.id}"
        order = await self._off_loop(exchange, self._intake.completions, request, f"{id_}-{secrets.token_hex(4)}")
        engine = self._engine
        writer = answers.CompletionWriter(order, id_, _now(), engine.name, engine.model.tokens)
        await self._generate(exchange, order, writer)

    async def embeddings(self, exchange: Exchange) -> None:
        request: Any = await self._parsed(exchange, Route.EMBEDDINGS)
        prompts = await self._off_loop(exchange, self._intake.embeddings, request)
        id_ = exchange.answer_id = f"embd-{exchange.id}"
        tokens = exchange.prompt_tokens = sum(map(len, prompts))
        vectors = await unless_hung_up(exchange.receive, self._engine.embed(prompts))
        packed = request.encoding_format == "base64"
        await exchange.answer(answers.embeddings_body(self._engine.name, id_, _now(), vectors, tokens, packed=packed))

    async def tokenize(self, exchange: Exchange) -> None:
        request: Any = await self._parsed(exchange, Route.TOKENIZE)
        ids = await self._off_loop(exchange, self._intake.tokenize, request)
        names = [self._engine.model.tokens.name(id_) for id_ in ids] if request.return_token_strs else None
        await exchange.answer(answers.tokenize_body(ids, self._engine.context, names))

    async def detokenize(self, exchange: Exchange) -> None:
        request: Any = await self._parsed(exchange, Route.DETOKENIZE)
        ids = self._intake.prompts(request.tokens, "tokens", add_special=False)[0]
        await exchange.answer(msgspec.json.encode({"prompt": self._engine.model.tokens.decode(ids)}))

    async def models(self, exchange: Exchange) -> None:
        engine = self._engine
        await exchange.answer(answers.models_body(engine.names, engine.created, engine.context))

    async def health(self, exchange: Exchange) -> None:
        await exchange.answer(b"", 200 if self._engine.healthy else 503, [])

    async def version(self, exchange: Exchange) -> None:
        await exchange.answer(msgspec.json.encode({"version": self._version}))

    async def metrics(self, exchange: Exchange) -> None:
        kind = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        await exchange.answer(self._engine.metrics.page(), headers=[kind])

    async def _off_loop(self, exchange: Exchange, make: Callable[..., T], *args: Any) -> T:
        """Tokenising a long text would keep everybody waiting; handing over a short one costs more than it does."""
        if exchange.size < LONG_BODY_BYTES:
            return make(*args)
        return await asyncio.to_thread(make, *args)

    # --- generation -----------------------------------------------------------------------------------------------

    async def _parsed(self, exchange: Exchange, route: Route) -> AnyRequest:
        body = await exchange.body()
        request = parse(route, body)
        if request.model is not None and request.model not in self._engine.names:
            raise UnknownModel("This engine serves another model.", param="model")
        exchange.model = request.model or self._engine.name
        return request

    async def _generate(self, exchange: Exchange, order: Order, writer: answers.Writer) -> None:
        exchange.order = order
        await unless_hung_up(exchange.receive, self._run(exchange, order, writer))

    async def _run(self, exchange: Exchange, order: Order, writer: answers.Writer) -> None:
        async with self._engine.generate([choice.job for choice in order.choices]) as feed:
            if order.stream:
                await self._stream(exchange, order, writer, feed)
            else:
                open_ = len(order.choices)
                while open_:
                    open_ -= sum(choice.finish is not None for choice in await self._next(feed, order))
        if not order.stream:
            await exchange.answer(writer.answer())

    async def _stream(self, exchange: Exchange, order: Order, writer: answers.Writer, feed: Feed) -> None:
        open_ = len(order.choices)
        while open_:
            touched = await self._next(feed, order)
            block = b"".join(map(writer.events, touched))
            open_ -= sum(choice.finish is not None for choice in touched)
            if not exchange.begun:
                await exchange.begin(200, _STREAM)
            if block:
                await exchange.write(block)
        last = writer.usage_event() if order.usage_at_end else b""
        await exchange.write(last + DONE, more=False)

    async def _next(self, feed: Feed, order: Order) -> list[Choice]:
        """The choices that the next news are about, each once. Those that ended before are not among them."""
        by_job = order.by_job
        touched: dict[int, Choice] = {}
        for news in await feed.next():
            choice = by_job[news.job.id]
            if choice.finish:
                continue
            choice.take(news)
            touched[choice.index] = choice
            if choice.finish == "error":
                raise Unforeseen("The engine could not finish this request.")
            if choice.finish and not news.finish:
                self._engine.stopped(news.job)
        return list(touched.values())


class Edge:
    """Around everything: the request id, the key, and the one place where errors become answers."""

    def __init__(self, app: Any, api_key: str | None, tracer: "Tracer | None") -> None:
        self._app = app
        self._tracer = tracer
        self._digest = sha256(api_key.encode()).digest() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, request_id(scope))
        scope["exchange"] = exchange
        with nullcontext() if self._tracer is None else self._tracer.telling(exchange):
            await self._answer(exchange, scope, receive, send)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._digest is not None and scope["path"] not in _OPEN:
                self._check_key(exchange, self._digest)
            await self._app(scope, receive, send)
        except ClientGone as error:
            exchange.error = type(error).__name__
            log.info("request %s: the client is gone", exchange.id)
        except GatewayError as error:
            await exchange.fail(error)
        except Exception:
            log.exception("request %s failed", exchange.id)
            await exchange.fail(Unforeseen("The engine failed to handle this request."))

    def _check_key(self, exchange: Exchange, expected: bytes) -> None:
        given = exchange.header(b"authorization")
        if given is None:
            raise MissingKey("This engine needs an API key: send it as 'Authorization: Bearer KEY'.")
        kind, _, key = given.partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(sha256(key.strip()).digest(), expected):
            raise WrongKey


_OPEN = {"/health", "/version", "/metrics"}


def create_app(engine: Engine, *, version: str, api_key: str | None = None, tracer: "Tracer | None" = None) -> FastAPI:
    api = Api(engine, version)
    routes: list[tuple[str, str, Handle]] = [
        ("POST", "/v1/chat/completions", api.chat),
        ("POST", "/v1/completions", api.completions),
        ("POST", "/v1/embeddings", api.embeddings),
        ("POST", "/tokenize", api.tokenize),
        ("POST", "/detokenize", api.detokenize),
        ("GET", "/v1/models", api.models),
        ("GET", "/health", api.health),
        ("GET", "/version", api.version),
        ("GET", "/metrics", api.metrics),
    ]
    return FastAPI(
        openapi_url=None,  # the paths above and no others
        redirect_slashes=False,
        exception_handlers={HTTPException: _lost},
        routes=[Path(path, _Endpoint(handle), methods=[method]) for method, path, handle in routes],
        middleware=[Middleware(Edge, api_key=api_key, tracer=tracer)],
    )


class _Endpoint:
    """A handler as the plain ASGI application that the router takes."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._handle(scope["exchange"])


def _lost(request: Any, error: Exception) -> Any:
    """The router's own refusals, raised again as ours."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        raise WrongMethod(allow=(error.headers or {}).get("Allow", "GET"))
    raise UnknownPath


def _now() -> int:
    return int(datetime.now(UTC).timestamp())
