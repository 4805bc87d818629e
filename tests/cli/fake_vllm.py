"""Stands in for the `vllm` command: starts when told to serve, says what it does, and answers one sentence."""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": option("--served-model-name"), "object": "model"}]}
        self._answer(models if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        chat = "messages" in body
        print("INFO Asked to chat" if chat else "INFO Asked to complete", flush=True)
        time.sleep(float(os.environ.get("FAKE_ANSWER_S", "0")) if chat else 0)  # else nobody is let in so long
        message = {"role": "assistant", "content": "Hello from the engine."}
        self._answer(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body.get("model"),
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
            }
        )

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


if __name__ == "__main__":
    print("INFO Loading weights", flush=True)
    if option("serve") == "no/such-model":
        sys.exit("ValueError: no/such-model is not a model")
    time.sleep(float(os.environ.get("FAKE_LOAD_S", "0.3")))
    print("INFO Application startup complete", flush=True)
    ThreadingHTTPServer((option("--host"), int(option("--port"))), Handler).serve_forever()
