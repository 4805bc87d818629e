"""Stands in for the `gllm` that a cluster's processes are: a gateway and workers that speak ADR 17's words, and are up
in a moment. A worker's "engine" is a process that sleeps.

A model called `unknown` cannot be loaded; a worker whose name stands in STAND_IN_BROKEN ends at its start.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["content-length"] or 0)) or b"{}")

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str) -> None:
        self.answer({"error": {"message": message, "type": "", "param": None, "code": code}}, status)


class Worker(Handler):
    status: dict[str, Any]
    engine: "subprocess.Popen[bytes] | None" = None

    def do_GET(self) -> None:
        self.answer(Worker.status, 200 if Worker.status["state"] == "ready" else 503)

    def do_POST(self) -> None:
        if self.headers["authorization"] != f"Bearer {os.environ['CLUSTER_SECRET']}":
            return self.refuse(401, "The API key is not known.", "invalid_api_key")
        order = self.body()
        Worker.status |= {"state": "loading", "progress": {"step": "loading", "part": 0.0}}
        threading.Thread(target=self.load, args=(order["model"],), daemon=True).start()
        return self.answer(Worker.status, 202)

    @staticmethod
    def load(model: str) -> None:
        for percent in range(0, 101, 25):
            print(f"Loading {model}: {percent}%", flush=True)
            Worker.status["progress"] = {"step": "loading", "part": percent / 100, "said": f"shard {percent}"}
            time.sleep(float(os.environ.get("STAND_IN_LOAD_S", "0.3")) / 5)
        if model == "unknown":
            Worker.status |= {"state": "empty", "progress": None, "reason": "engine did not start: exit code 1."}
        else:
            Worker.engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            Worker.status |= {"state": "ready", "progress": None, "names": [Path(model).name]}


class Gateway(Handler):
    def do_GET(self) -> None:
        if self.path == "/admin/workers":
            return self.answer({"workers": seen()})
        return self.answer({"pid": os.getpid()})

    def do_POST(self) -> None:
        wanted = self.body()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for url in workers():
            ask(url, "/load_model", {"model": wanted["model"]})
        while any(each["state"] == "loading" for each in seen()):
            for each in seen():
                self.event({"state": "running", "worker": each["name"], **(each["progress"] or {"step": "ready"})})
            time.sleep(0.05)
        for each in seen():
            self.event({"state": "running", "worker": each["name"], "step": each["state"]})
        failed = [each for each in seen() if each["state"] != "ready"]
        if failed:
            self.event({"state": "failed", "message": failed[0]["reason"], "tail": ["ValueError: no such model"]})
        else:
            self.event({"state": "done"})

    def event(self, value: object) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()


def workers() -> list[str]:
    return [url for url in os.environ["WORKER_URLS"].split(",") if url]


def seen() -> list[dict[str, Any]]:
    found = []
    for url in workers():
        try:
            found.append({**ask(url, "/health"), "address": url})
        except OSError:
            found.append({**EMPTY, "name": url, "address": url, "reachable": False})
    return found


EMPTY = {"life": "1", "version": 1, "state": "empty", "engine": "command", "gpus": []}


def ask(url: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {os.environ['CLUSTER_SECRET']}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=5) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if sys.argv[1] == "worker":
        name = option("--name")
        print(f"{name} takes {' '.join(sys.argv[2:])}", flush=True)
        if name in os.environ.get("STAND_IN_BROKEN", "").split(","):
            sys.exit("gllm: GPU 7 is taken.")
        Worker.status = {**EMPTY, "name": name, "gpus": option("--gpus").split(",")}
        ThreadingHTTPServer((option("--host"), int(option("--port"))), Worker).serve_forever()
    print(os.environ.get("STAND_IN_SAYS", "the gateway listens"), flush=True)
    ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Gateway).serve_forever()


if __name__ == "__main__":
    main()
