"""The least that relays a chat completion, in several stacks; and gllm itself, served as `gllm serve` serves it.

python -m bench.skeletons asgi|fastapi|gllm own|httpx httptools|h11 PORT ENGINE_PORT
"""

import math
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from app.engines.http import HttpEngine, Timeouts
from app.gateway.app import Gateway
from app.generation import Call, Route
from app.reliability.watch import Watch
from app.settings import Settings


class Client(Protocol):
    def ask(self, body: bytes, stream: bool) -> Any: ...


class Own:
    def __init__(self, url: str) -> None:
        timeouts = Timeouts(connect_s=5, first_byte_s=60, idle_s=60)
        self._engine = HttpEngine(url, watch=Watch(time.monotonic), timeouts=timeouts)

    def ask(self, body: bytes, stream: bool) -> Any:
        return self._engine.open(Call("x", Route.CHAT, "demo", body, math.inf, stream))


class Httpx:
    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(base_url=url, limits=limits, timeout=None, trust_env=False)

    @asynccontextmanager
    async def ask(self, body: bytes, stream: bool) -> AsyncIterator[AsyncIterator[bytes]]:
        headers = {"content-type": "application/json"}
        async with self._client.stream("POST", "/v1/chat/completions", content=body, headers=headers) as answer:
            yield answer.aiter_raw() if stream else _only(await answer.aread())


async def _only(body: bytes) -> AsyncIterator[bytes]:
    yield body


def asgi(client: Client) -> Any:
    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        stream = b'"stream": true' in body
        kind = b"text/event-stream" if stream else b"application/json"
        started = False
        async with client.ask(body, stream) as blocks:
            async for block in blocks:
                if not started:
                    started = True
                    headers = [(b"content-type", kind)]
                    if not stream:
                        headers.append((b"content-length", b"%d" % len(block)))
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": block, "more_body": stream})
        if stream:
            await send({"type": "http.response.body", "body": b""})

    return app


def fastapi(client: Client) -> Any:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.body()
        if b'"stream": true' in body:
            return StreamingResponse(relay(body), media_type="text/event-stream")
        async with client.ask(body, False) as blocks:
            return Response(b"".join([block async for block in blocks]), media_type="application/json")

    async def relay(body: bytes) -> AsyncIterator[bytes]:
        async with client.ask(body, True) as blocks:
            async for block in blocks:
                yield block

    return app


def config(kind: str, client_name: str, parser: str, port: int, engine: str) -> uvicorn.Config:
    quiet: dict[str, Any] = {"access_log": False, "log_level": "warning", "server_header": False, "ws": "none"}
    if kind == "gllm":
        flags = {"ENGINE_TYPE": "external", "ENGINE_URLS": engine, "LOG_FORMAT": "json"}
        otel = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
        gateway = Gateway(Settings.load(otel, None, **flags))
        return uvicorn.Config(gateway.app, port=port, http=gateway.protocol, proxy_headers=False, **quiet)
    client: Client = Own(engine) if client_name == "own" else Httpx(engine)
    app = asgi(client) if kind == "asgi" else fastapi(client)
    return uvicorn.Config(app, port=port, http=parser, lifespan="off", proxy_headers=False, **quiet)


def main() -> None:
    kind, client, parser, port, engine = sys.argv[1:]
    with open("/dev/null", "w") as nowhere:  # a log line a request is written, as it would be, and not kept
        sys.stderr = nowhere
        server = uvicorn.Server(config(kind, client, parser, int(port), f"http://127.0.0.1:{engine}"))
        server.run()


if __name__ == "__main__":
    main()
