"""What people import and type: `from gllm import GLLM`, `gllm serve`. Nothing is loaded before it is asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gllm.client import GLLM as GLLM
    from gllm.client import AsyncGLLM as AsyncGLLM
    from gllm.client import RemoteError as RemoteError
    from gllm.client import Retries as Retries

__version__ = "0.1.0"

_HOMES = dict.fromkeys(("GLLM", "AsyncGLLM", "RemoteError", "Retries"), "gllm.client")


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'gllm' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted((*globals(), *_HOMES))
