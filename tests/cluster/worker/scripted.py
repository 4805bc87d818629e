"""A small engine that does as its model's name says; the words between its name's dashes are its script.

    python scripted.py --host H --port P --model well-slow0.5 --names a b --folder F

`bad`: cannot be loaded. `falls`: neither, and its processes say why one after the other. `dies0.5`: crashes so long
after its first request. `mute`: never answers its first request. `sick`: answers 500 to it. `slow2`: loads for so long.
`busy`: `/health` takes 0.6 s. `embeds`: offers no completions. `untold`: has no metrics. `helper`: starts one. `seen`:
says which GPUs it sees. `stubborn`: ignores SIGTERM. In the folder, a file `hang` stops all its answers, and `work`
says how many requests run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--model")
parser.add_argument("--names", nargs="+")
parser.add_argument("--folder", type=Path)
parser.add_argument("--enable-lora", action="store_true")
parser.add_argument("--headless", action="store_true")
parser.add_argument("--quiet", action="store_true")
args = parser.parse_args()
script = args.model.split("-")
adapters: dict[str, str] = {}
if "stubborn" in script:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def seconds(word: str) -> float | None:
    found = [each for each in script if each.startswith(word)]
    return float(found[0].removeprefix(word) or 0) if found else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if (args.folder / "hang").exists():
            time.sleep(600)
        if "busy" in script and self.path == "/health":
            time.sleep(0.6)
        if self.path == "/v1/models":
            self._answer({"object": "list", "data": [{"id": name} for name in (*args.names, *adapters)]})
        elif self.path == "/metrics" and "untold" not in script:
            work = args.folder / "work"
            running = int(work.read_text()) if work.exists() else 0
            self._answer(f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\n")
        else:
            self._answer({}, 200 if self.path == "/health" else 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/completions":
            self._completion(body)
        elif not args.enable_lora:
            self._answer({"detail": "Not Found"}, 404)
        elif self.path == "/v1/load_lora_adapter":
            if not Path(body["lora_path"]).exists():
                self._refuse(f"No adapter found for {body['lora_path']}")
                return
            if body["lora_name"] in adapters and not body.get("load_inplace"):
                self._refuse(f"The lora adapter '{body['lora_name']}' has already been loaded.")
                return
            adapters[body["lora_name"]] = body["lora_path"]
            self._answer("Success")
        elif adapters.pop(body["lora_name"], None) is None:
            self._refuse(f"The lora adapter '{body['lora_name']}' cannot be found.")
        else:
            self._answer("Success")

    def _completion(self, body: dict[str, object]) -> None:
        if "mute" in script:
            time.sleep(600)
        if "embeds" in script:
            self._answer({"error": {"message": "The model does not support Completions API"}}, 400)
            return
        print("asked for", body["model"], flush=True)
        if (lives_s := seconds("dies")) is not None:
            threading.Timer(lives_s, lambda: os._exit(9)).start()
        self._answer({"choices": [{"text": "!"}]}, 500 if "sick" in script else 200)

    def _refuse(self, message: str) -> None:
        self._answer({"error": {"message": message, "type": "NotFoundError", "code": 404}}, 404)

    def _answer(self, value: object, status: int = 200) -> None:
        body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


if "helper" in script:
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    print("helper", helper.pid, flush=True)
if "seen" in script:
    print("sees", os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("CLUSTER_SECRET"), flush=True)
print(f"loading {args.model}", flush=True)
if "bad" in script:
    sys.exit(f"no such model: {args.model}")
if "falls" in script:
    first = "(EngineCore pid=7) ERROR 11-27 16:03:43 [core.py:1510] torch.OutOfMemoryError: CUDA out of memory."
    others = [f"(APIServer pid=6)   line {number}" for number in range(100)]
    sys.exit("\n".join([first, *others, "RuntimeError: See root cause above."]))
loading_s = seconds("slow") or 0.0
for percent in (0, 50, 100):
    if loading_s:
        print(f"Loading safetensors checkpoint shards: {percent:3}% Completed | 1/2 [00:00<00:00]", flush=True)
        time.sleep(loading_s / 3)
ThreadingHTTPServer((args.host, args.port), Handler).serve_forever()
