"""A server that answers as it is told, on a real socket: it refuses, stalls, and breaks streams where it is told to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gllm.client.retries import Retries

TEXT = ["Hello", ",", " world", "."]
PROMPTLY = Retries(first_pause_s=0.0, longest_pause_s=30.0, least_per_s=100.0, jitter=lambda: 0.5)
"""No pauses but those that the server asks for, and retries enough."""


def chat_answer(text: str = "".join(TEXT)) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode()


def error(code: str, kind: str = "api_error") -> bytes:
    return json.dumps({"error": {"message": f"It is {code}.", "type": kind, "param": None, "code": code}}).encode()


def events(pieces: list[str] = TEXT, numbered: bool = True) -> list[bytes]:
    payloads = [json.dumps({"choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in pieces]
    lines = [f"data: {payload}\n\n" for payload in (*payloads, "[DONE]")]
    return [(f"id: {n}\n" if numbered else "").encode() + line.encode() for n, line in enumerate(lines, 1)]


@dataclass(frozen=True)
class Whole:
    status: int = 200
    body: bytes = field(default_factory=chat_answer)
    headers: dict[str, str] = field(default_factory=dict)
    declares: int | None = None
    """More bytes than there are: the connection breaks in the middle."""


@dataclass(frozen=True)
class Streams:
    """Its blocks, and then the end of the stream; or of the connection, if it is to break."""

    blocks: list[bytes]
    breaks: bool = False


class Silent:
    """No answer, until the test is over."""


class Drops:
    """The connection, before there is an answer."""


Says = Whole | Streams | Silent | Drops


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: Message
    body: Any


@dataclass
class Scripted:
    """Its next answers, in order; then what `otherwise` makes of what is asked."""

    url: str
    says: list[Says] = field(default_factory=list)
    otherwise: Callable[[Asked], Says] = lambda asked: Whole()
    asked: list[Asked] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def posts(self) -> list[Asked]:
        return [each for each in self.asked if each.method == "POST"]

    @property
    def given_up(self) -> list[str]:
        return [each.path.rpartition("/")[2] for each in self.asked if each.method == "DELETE"]

    def next(self, asked: Asked) -> Says:
        with self.lock:
            self.asked.append(asked)
            if asked.method == "DELETE":
                return Whole(204, b"")
            return self.says.pop(0) if self.says else self.otherwise(asked)


@contextmanager
def scripted() -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked = Asked(self.command, self.path, self.headers, json.loads(body) if body else None)
            with suppress(OSError):
                self._answer(state.next(asked))

        do_POST = do_DELETE = do_GET  # noqa: N815  # http.server calls them so

        def _answer(self, said: Says) -> None:
            match said:
                case Whole():
                    length = len(said.body) if said.declares is None else said.declares
                    self._head(said.status, {"content-length": str(length), **said.headers})
                    self.wfile.write(said.body)
                    self.close_connection = said.declares is not None
                case Streams():
                    self._head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
                    for block in said.blocks:
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
                    self.close_connection = said.breaks
                    if not said.breaks:
                        self.wfile.write(b"0\r\n\r\n")
                case Silent():
                    state.over.wait(30)
                    self.close_connection = True
                case Drops():
                    self.close_connection = True

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"content-type": "application/json", "x-request-id": "req-1", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state = Scripted(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            state.over.set()
            server.shutdown()
            thread.join()
