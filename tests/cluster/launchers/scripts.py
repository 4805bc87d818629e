"""Small programs that behave, or misbehave, as engines do."""

import sys

from app.cluster.launchers.plan import Build, Place
from app.settings import Engine

SERVES = """
import http.server, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *args): pass
def serve():
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
HEALTHY = SERVES + "print('loading', flush=True); serve()"
REFUSES = "print('no such model: nowhere/at-all', flush=True); raise SystemExit(3)"
NEVER_READY = "import time; print('still loading', flush=True); time.sleep(600)"
STUBBORN = SERVES + "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); serve()"
CHATTERS = SERVES + "print(('x' * 199 + '\\n') * 60_000, flush=True); serve()"
HAS_CHILDREN = (
    SERVES
    + """
import subprocess, signal
ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
near = subprocess.Popen([sys.executable, "-c", ignoring])
far = subprocess.Popen([sys.executable, "-c", ignoring], start_new_session=True)
print("children", near.pid, far.pid, flush=True)
serve()
"""
)


def running(script: str) -> Build:
    def build(engine: Engine, place: Place) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-c", script, str(place.port)], {}

    return build
