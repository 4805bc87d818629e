"""Something that looks like a gateway, and breaks one promise: what a load test is there to find."""

import itertools
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = 6
PROMPT = 9
REFUSING = {
    "refuses": (503, {"retry-after": "2"}),
    "refuses half": (503, {"retry-after": "0"}),
    "limits half": (429, {"retry-after": "0"}),
    "refuses without retry-after": (503, {}),
}


class Pretender(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, vice: str = "", takes_s: float = 0.02) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.vice = vice
        self.takes_s = takes_s
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[float] = []
        """When calls came."""
        self.numbers = itertools.count()
        self.charged = 0
        self.answers: dict[str, tuple[bool, list[bytes]]] = {}
        self.turn: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        """One at a time with one key; and, with the vice "slow", at all."""
        self.paths: Counter[str] = Counter()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Hang-ups are what it is there for."""

    def answer(self, key: str, *, stream: bool) -> tuple[bool, list[bytes]]:
        """Whether it was there already, and its parts."""
        if key in self.answers and self.vice != "executes twice":
            self.charged += self.vice == "charges twice"
            _, parts = self.answers[key]
            return True, [*parts[:-1], parts[-1] + b" "] if self.vice == "other bytes" else parts
        self.charged += 1
        self.answers[key] = (stream, _stream(self.charged, self.vice) if stream else _whole(self.charged))
        return False, self.answers[key][1]


class Handler(BaseHTTPRequestHandler):
    server: Pretender
    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Not a word."""

    def do_GET(self) -> None:
        count = self.server.charged
        said = {
            "/health": {"requests_active": 3 if self.server.vice == "works on" else 0},
            "/admin/usage": {
                "totals": {"requests": count, "prompt_tokens": count * PROMPT, "completion_tokens": count * TOKENS}
            },
        }
        self._whole(200, json.dumps(said[self.path]).encode())

    def do_DELETE(self) -> None:
        self.server.paths[self.command] += 1
        self._whole(204, b"")

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server, vice = self.server, self.server.vice
        key = self.headers.get("idempotency-key") or f"of one call, {next(server.numbers)}"
        server.seen.append(time.monotonic())
        if vice in REFUSING and not ("half" in vice and len(server.seen) % 2):
            status, head = REFUSING[vice]
            self._whole(status, b'{"error": {"message": "no", "code": "queue_full"}}', **head)
            return
        with server.turn["" if vice == "slow" else key]:
            time.sleep(server.takes_s)
            there, parts = server.answer(key, stream=asked["stream"])
        head = {"idempotent-replayed": "true"} if there else {}
        with suppress(OSError):
            self._stream(parts, head) if asked["stream"] else self._whole(200, b"".join(parts), **head)

    def _whole(self, status: int, body: bytes, **head: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "x-request-id": "1", **head}.items():
            self.send_header(name.replace("_", "-"), value)
        torn = self.server.vice == "half an answer" and self.command == "POST"
        self.send_header("content-length", str(len(body) + torn))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = torn

    def _stream(self, parts: list[bytes], head: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream", "transfer-encoding": "chunked", **head}.items():
            self.send_header(name, value)
        self.end_headers()
        for part in parts:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            time.sleep(0.002)
        self.wfile.write(b"0\r\n\r\n")


def _whole(number: int) -> list[bytes]:
    return [json.dumps({"id": number, "choices": [{"message": {"content": "word"}}], "usage": _USAGE}).encode()]


def _stream(number: int, vice: str) -> list[bytes]:
    said = [{"id": number, "choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    said += [{"id": number, "choices": [{"delta": {"content": "word "}}]}] * TOKENS
    if vice != "no usage":
        said.append({"id": number, "choices": [], "usage": _USAGE})
    events = [b"data: %b\n\n" % json.dumps(each).encode() for each in said]
    failed = b'data: {"error": {"message": "gone", "code": "engine_interrupted"}}\n\n'
    done = b"data: [DONE]\n\n"
    ends = {"no end": [], "error after done": [done, failed], "done after error": [failed, done]}
    return events + ends.get(vice, [done])


_USAGE = {"prompt_tokens": PROMPT, "completion_tokens": TOKENS, "total_tokens": PROMPT + TOKENS}


@contextmanager
def pretending(vice: str = "", takes_s: float = 0.02) -> Iterator[Pretender]:
    with Pretender(vice, takes_s) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
