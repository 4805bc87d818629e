"""An engine that thinks nothing: canned bytes over HTTP/1.1, whole or as a paced stream.

python -m bench.canned_engine PORT
"""

import asyncio
import json
import sys

import httptools
import uvloop

EVENTS = 40
EVERY_S = 0.02

HEAD = {"id": "x", "object": "chat.completion", "created": 0, "model": "demo"}
USAGE = {"prompt_tokens": 400, "completion_tokens": EVENTS, "total_tokens": 400 + EVENTS}


def _json(path: str) -> bytes:
    message = {"role": "assistant", "content": "word " * 60}
    answer = {**HEAD, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}
    models = {"object": "list", "data": [{"id": "demo", "object": "model", "max_model_len": 8_192}]}
    body = json.dumps(models if path == "models" else answer).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _chunk(payload: object) -> bytes:
    event = b"data: %b\n\n" % (payload if isinstance(payload, bytes) else json.dumps(payload).encode())
    return b"%x\r\n%b\r\n" % (len(event), event)


CHUNK = _chunk({**HEAD, "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None}]})
LAST = _chunk({**HEAD, "choices": [], "usage": USAGE}) + _chunk(b"[DONE]") + b"0\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
MODELS, ANSWER = _json("models"), _json("answer")


class Canned(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.body = b""
        self.left = 0

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if self.url.endswith(b"/models"):
            self._write(MODELS)
        elif b'"stream": true' in body:
            self._write(STREAM)
            self.left = EVENTS
            self._next()
        else:
            self._write(ANSWER)

    def _next(self) -> None:
        if self.transport.is_closing():
            return
        if self.left == 0:
            self._write(LAST)
            return
        self.left -= 1
        self._write(CHUNK)
        asyncio.get_running_loop().call_later(EVERY_S, self._next)

    def _write(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]  # uvloop's transports are one class


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Canned, "127.0.0.1", port, backlog=1_024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
