"""The HTTP engine under the contract, over a small server that speaks OpenAI's wire format on a real socket."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from app.engines.http import HttpEngine, Timeouts
from app.reliability.watch import Watch
from app.wire.sse import DONE, event
from tests.contract.rig import Fault, Rig, sweeping

WORDS = ("Grüße", ", ", "你好", " ", "👋🏽", "!")
MODELS = {"object": "list", "data": [{"id": "demo", "object": "model", "max_model_len": 2_048}, {"id": "lora"}]}
JSON, SSE = b"application/json", b"text/event-stream; charset=utf-8"

_SAYS: dict[Fault, tuple[int, dict[str, Any]]] = {
    Fault.REFUSED: (400, {"message": "No such voice: /srv/key.pem", "param": "audio", "code": "bad_voice"}),
    Fault.TOO_LONG: (400, {"message": "This model's maximum context length is 2048 tokens. You asked for more."}),
    Fault.LACKS: (404, {"message": "Not Found"}),
    Fault.BUSY: (503, {"message": "The queue is full."}),
    Fault.FORGOT: (404, {"message": "The model `demo` does not exist.", "type": "NotFoundError"}),
    Fault.FAILED: (500, {"message": "CUDA error at 0x7f00"}),
    Fault.MISCONFIGURED: (401, {"message": "Unauthorized"}),
}


class Small:
    """An engine in a few lines: it answers, counts what it does, and stops when its client hangs up."""

    def __init__(self) -> None:
        self.running = 0
        self.fault: Fault | None = None
        self.breaks = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.running += 1
        try:
            async with asyncio.TaskGroup() as both:
                answering = both.create_task(self._answer(scope["path"], body, send))
                watching = both.create_task(self._watch(receive, answering))
                answering.add_done_callback(lambda _: watching.cancel())
        finally:
            self.running -= 1

    async def _watch(self, receive: Any, answering: "asyncio.Task[None]") -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        answering.cancel()

    async def _answer(self, path: str, body: bytes, send: Any) -> None:
        if self.fault in _SAYS:
            status, error = _SAYS[self.fault]
            await self._whole(send, json.dumps({"error": error}).encode(), status)
        elif self.fault is Fault.NONSENSE:
            await self._whole(send, b"<html>Welcome</html>", kind=b"text/html")
        elif path == "/v1/models":
            await self._whole(send, json.dumps(MODELS).encode())
        else:
            asked = json.loads(body)
            await (self._stream if asked["stream"] else self._at_once)(asked, send)

    async def _at_once(self, asked: dict[str, Any], send: Any) -> None:
        if asked["ignore_eos"]:
            await asyncio.Event().wait()
        message = {"role": "assistant", "content": "".join(WORDS)}
        answer = {"choices": [{"index": 0, "message": message}], "usage": {"completion_tokens": len(WORDS)}}
        await self._whole(send, json.dumps(answer).encode())

    async def _whole(self, send: Any, body: bytes, status: int = 200, kind: bytes = JSON) -> None:
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"retry-after", b"3")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if self.breaks:
            await send({"type": "http.response.body", "body": body[:5], "more_body": True})
            raise ConnectionAbortedError
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, asked: dict[str, Any], send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", SSE)]})
        for piece in _torn(b"".join(map(_chunk, WORDS)) + DONE):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if self.breaks:
                raise ConnectionAbortedError
            if asked["ignore_eos"]:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})


def _chunk(word: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": word}}]})


def _torn(stream: bytes) -> Iterator[bytes]:
    """In pieces that are no events: the first is one and a bit, the others end anywhere, inside a character too."""
    first = stream.index(b"\n\n") + 12
    yield stream[:first]
    for at in range(first, len(stream), 67):
        yield stream[at : at + 67]


class HttpRig(Rig):
    def __init__(self, small: Small, server: uvicorn.Server, port: int) -> None:
        self.small = small
        self.server = server
        self.watch = Watch(time.monotonic)
        url = f"http://127.0.0.1:{port}/v1"
        self.engine: HttpEngine = HttpEngine(url, watch=self.watch, timeouts=Timeouts(5, 5, 5))

    async def running(self) -> int:
        return self.small.running

    async def fails(self, fault: Fault | None) -> None:
        self.small.fault = fault
        if fault is Fault.UNREACHABLE:
            for listener in self.server.servers:
                listener.close()

    async def breaks_off(self) -> None:
        self.small.breaks = True


@asynccontextmanager
async def over_http() -> AsyncIterator[Rig]:
    small = Small()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        config = uvicorn.Config(small, http="httptools", ws="none", lifespan="off", log_level="critical")
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        rig = HttpRig(small, server, listener.getsockname()[1])
        try:
            async with sweeping(rig.watch):
                yield rig
        finally:
            await server.shutdown(sockets=[listener])
        assert rig.engine.open_connections == 0
