"""Whom Alertmanager calls in the stack, and in a drill: keeps the last calls, and shows them at /calls.

python pager.py [PORT]
"""

import json
import sys
from collections import deque
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEPT = 200
MOST_BYTES = 2**20

calls: deque[dict[str, Any]] = deque(maxlen=KEPT)


class Pager(BaseHTTPRequestHandler):
    timeout = 10

    def do_GET(self) -> None:  # as http.server has it
        self._answer(200 if self.path == "/calls" else 404, list(calls) if self.path == "/calls" else [])

    def do_POST(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        if size > MOST_BYTES:
            return self._answer(413, [])
        try:
            said = json.loads(self.rfile.read(size))
            alerts = [(each["labels"]["alertname"], each["status"]) for each in said["alerts"]]
        except (ValueError, KeyError, TypeError):
            return self._answer(400, [])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for name, status in alerts:
            calls.append({"at": now, "to": self.path.strip("/"), "alert": name, "status": status})
            print(f"{now} {self.path.strip('/')}: {name} {status}", flush=True)
        return self._answer(200, [])

    def _answer(self, status: int, body: list[Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """A call is told once, above."""


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8090
    ThreadingHTTPServer(("", port), Pager).serve_forever()


if __name__ == "__main__":
    main()
