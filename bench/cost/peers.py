"""Others that stand between clients and engines: how each is installed, started, and what it is to be seen as."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bench.cost.build import CACHE
from bench.cost.engine import MODEL, Engine
from bench.cost.gateway import REPLICAS
from bench.cost.standing import Start
from bench.machine import ROOT
from bench.ports import free_port

HOST = "127.0.0.1"
KEY = "sk-0123456789abcdef0123456789abcdef"

NGINX_CONF = """
daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 20000;
events {{ worker_connections 19000; multi_accept on; }}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi; client_body_buffer_size 512k;
  keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nodelay on;
  upstream engines {{ {servers} keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering on; proxy_read_timeout 3600s;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Peer:
    name: str
    about: str
    start: Callable[[Engine], Start]
    packages: Sequence[str] = ()
    """Installed into an environment of its own."""
    program: str = ""
    """What has to be on this machine, if it is no package."""

    def version(self) -> str | None:
        """None: it is not there."""
        if self.program:
            path = _program(self.program)
            if path is None:
                return None
            said = subprocess.run([path, "-v"], capture_output=True, text=True, check=False)
            return (said.stdout + said.stderr).strip().rpartition("/")[2]
        if not self.packages:
            return f"with httpx {metadata.version('httpx')}"
        python, package = _python(self.name), self.packages[0].partition("=")[0].partition("[")[0]
        if not python.exists():
            return None
        asked = f"from importlib.metadata import version; print(version({package!r}))"
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
        return done.stdout.strip() or None

    def install(self) -> None:
        """Once; a failure is told, and the peer is left out."""
        if self.packages and self.version() is None:
            home = CACHE / "peers" / self.name
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
            subprocess.run([_python(self.name), "-m", "pip", "install", *quiet, *self.packages], check=False)


def _python(name: str) -> Path:
    return CACHE / "peers" / name / "bin" / "python"


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def _nginx(engine: Engine) -> Start:
    port = free_port()
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in engine.urls(REPLICAS))
    conf = NGINX_CONF.format(servers=servers, port=port)
    return Start([_program("nginx") or "nginx", "-p", ".", "-c", "nginx.conf"], port, files={"nginx.conf": conf})


def _plain(engine: Engine) -> Start:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bench.cost.plain:app", *_listening(port), "--backlog", "4096"]
    quick = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
    return Start([*command, *quick], port, {"PYTHONPATH": str(ROOT), "ENGINES": ",".join(engine.urls(REPLICAS))})


def _router(name: str, module: str, most: str) -> Callable[[Engine], Start]:
    def start(engine: Engine) -> Start:
        port, metrics = free_port(), free_port()
        command = [str(_python(name)), "-m", module, "--worker-urls", *engine.urls(REPLICAS), *_listening(port)]
        relay = ["--policy", "round_robin", "--disable-retries", "--max-concurrent-requests", most]
        quiet = ["--log-level", "error", "--prometheus-host", HOST, "--prometheus-port", str(metrics)]
        return Start([*command, *relay, *quiet], port, settle_s=1)

    return start


def _litellm(engine: Engine) -> Start:
    port = free_port()
    deployments = [
        {"model_name": MODEL, "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "x"}}
        for url in engine.urls(REPLICAS)
    ]
    config = {"model_list": deployments, "general_settings": {"master_key": KEY}}
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_TELEMETRY": "False",
        "DISABLE_ADMIN_UI": "True",
        "NO_DOCS": "True",
    }
    command = [str(_python("litellm").with_name("litellm")), "--config", "config.yaml", *_listening(port)]
    files = {"config.yaml": json.dumps(config)}  # JSON is YAML
    return Start([*command, "--num_workers", "1"], port, environment, files, [KEY], settle_s=1, idle_most=100)


def _listening(port: int) -> list[str]:
    return ["--host", HOST, "--port", str(port)]


PLAIN = Peer("plain", "FastAPI and httpx, in turn over 4 replicas", _plain)

PEERS: Sequence[Peer] = (
    Peer("nginx", "a relay in C, in turn over 4 replicas", _nginx, program="nginx"),
    Peer(
        "vllm-router",
        "Rust; in turn over 4 replicas, health checks, metrics",
        _router("vllm-router", "vllm_router.launch_router", "16384"),
        ["vllm-router==0.1.17"],
    ),
    Peer(
        "sglang-router",
        "Rust; in turn over 4 replicas, health checks, metrics",
        _router("sglang-router", "sglang_router.launch_router", "-1"),
        ["sglang-router==0.3.2"],
    ),
    PLAIN,
    Peer(
        "litellm",
        "one key, shuffles over 4 replicas",
        _litellm,
        ["litellm[proxy]==1.108.7", "httptools"],  # without the second it parses HTTP in Python
    ),
)


def present() -> Iterator[tuple[Peer, str]]:
    for peer in PEERS:
        version = peer.version()
        if version is not None:
            yield peer, version
