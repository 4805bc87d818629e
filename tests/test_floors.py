"""Facts of the architecture that an import linter cannot see: what a module does, not only whom it knows."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).parents[1] / "app"


def modules(*floors: str) -> list[Path]:
    found: list[Path] = []
    for floor in floors:
        place = APP / floor
        found += sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert found
    return found


def imports(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def told(module: Path) -> str:
    return str(module.relative_to(APP.parent))


WORLD = {"asyncio", "socket", "ssl", "os", "pathlib", "subprocess", "threading", "httpx", "uvicorn", "fastapi", "time"}


@pytest.mark.parametrize("module", modules("wire", "errors.py", "generation.py", "clock.py", "trace.py"), ids=told)
def test_the_wire_format_and_the_vocabulary_do_no_input_or_output(module: Path) -> None:
    assert not {name.split(".")[0] for name in imports(module)} & WORLD


@pytest.mark.parametrize("module", modules("reliability"), ids=told)
def test_policies_know_no_http(module: Path) -> None:
    known = {name.split(".")[0] for name in imports(module)}
    assert not known & {"fastapi", "starlette", "uvicorn", "httpx", "httptools"}


def calls(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize(
    "module", modules("reliability", "gateway", "telemetry", "wire", "cluster/fleet.py", "cluster/probe.py"), ids=told
)
def test_time_is_handed_in_as_a_clock(module: Path) -> None:
    assert not {"time.time", "time.monotonic", "time.perf_counter", "loop.time"} & set(calls(module))


@pytest.mark.parametrize("module", modules("gateway"), ids=told)
def test_streams_pass_no_middleware_that_holds_them_back(module: Path) -> None:
    assert not {name for name in imports(module) if "BaseHTTPMiddleware" in name}


FRESH = """
import os, sys
ours = {"ENGINE_URLS", "MODEL_NAME", "PORT", "HOST", "LOG_LEVEL", "REDIS_URL", "TENANTS_FILE"}
real = os.environ.__class__.__getitem__
def watched(self, name):
    assert name not in ours, f"{name} was read from the environment"
    return real(self, name)
os.environ.__class__.__getitem__ = watched
import app.main
heavy = {"torch", "transformers", "tokenizers", "vllm", "accelerate", "numpy", "ray", "redis", "opentelemetry.sdk"}
heavy &= set(sys.modules)
assert not heavy, heavy
print("well")
"""


def test_importing_the_gateway_loads_no_engine_and_reads_no_setting() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH], cwd=APP.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr
