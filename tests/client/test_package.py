"""What `import gllm` costs, and what people find in it."""

import pickle
import subprocess
import sys
from pathlib import Path

import gllm
import gllm.interface
from gllm.client import LoadRefused, RemoteError, TimedOut

FRESH = """
import sys
import gllm
loaded = {"httpx", "pydantic", "tenacity", "asyncio"} & set(sys.modules)
assert not loaded, loaded
from gllm import GLLM
heavy = {"torch", "vllm", "transformers", "app", "fastapi", "ray"} & set(sys.modules)
assert not heavy, heavy
print("well")
"""


def test_importing_gllm_loads_nothing_and_the_client_nothing_heavy() -> None:
    folder = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", FRESH], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("well\n", 0), done.stderr


def test_names_are_where_the_users_of_gllm_know_them() -> None:
    assert gllm.interface.RemoteError is gllm.RemoteError is RemoteError
    assert gllm.interface.GLLM is gllm.GLLM
    assert {"GLLM", "AsyncGLLM", "RemoteError"} <= set(dir(gllm))
    assert not hasattr(gllm, "Nothing")


def test_the_package_is_typed() -> None:
    assert (Path(gllm.__file__).parent / "py.typed").exists()


def test_errors_travel_between_processes() -> None:
    for kind in (RemoteError, TimedOut, LoadRefused):
        error = kind("It is full.", status=503, code="queue_full", request_id="req-1", retry_after=2.0)
        found = pickle.loads(pickle.dumps(error))
        assert (type(found), vars(found), str(found)) == (kind, vars(error), str(error))
