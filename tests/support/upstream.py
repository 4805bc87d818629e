"""A server that answers as it is told, for what a real engine will not produce when asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MESSAGE = {"role": "assistant", "content": "Hello."}
WELL = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "demo",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": None}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


@dataclass(frozen=True)
class Says:
    status: int = 200
    body: bytes = json.dumps(WELL).encode()
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Upstream:
    """Its next answers, in order; after them it is well."""

    url: str
    says: list[Says] = field(default_factory=list)
    asked: list[bytes] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)


@contextmanager
def upstream(port: int) -> Iterator[Upstream]:
    state = Upstream(f"http://127.0.0.1:{port}")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(Says(body=b'{"object":"list","data":[{"id":"demo","max_model_len":2048}]}'))

        def do_POST(self) -> None:
            state.heads.append(str(self.headers))
            state.asked.append(self.rfile.read(int(self.headers["content-length"])))
            self._answer(state.says.pop(0) if state.says else Says())

        def _answer(self, said: Says) -> None:
            self.send_response(said.status)
            headers = {"content-type": "application/json", "content-length": str(len(said.body)), **said.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
