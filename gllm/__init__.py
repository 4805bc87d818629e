"""What people import and type: `gllm serve`, `from gllm import GLLM`, `from gllm import VLLMService`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gllm.client import GLLM as GLLM
    from gllm.client import AsyncGLLM as AsyncGLLM
    from gllm.client import RemoteError as RemoteError
    from gllm.client import Retries as Retries
    from gllm.service.client import VLLMClient as VLLMClient
    from gllm.service.config import LLMConfig as LLMConfig
    from gllm.service.config import ServeConfig as ServeConfig
    from gllm.service.logs import setup_logging as setup_logging
    from gllm.service.output import ResponseOutput as ResponseOutput
    from gllm.service.server import VLLMServer as VLLMServer
    from gllm.service.service import VLLMService as VLLMService

__version__ = "0.1.0"

_HOMES = {
    "AsyncGLLM": "gllm.client",
    "GLLM": "gllm.client",
    "LLMConfig": "gllm.service.config",
    "RemoteError": "gllm.client",
    "ResponseOutput": "gllm.service.output",
    "Retries": "gllm.client",
    "ServeConfig": "gllm.service.config",
    "VLLMClient": "gllm.service.client",
    "VLLMServer": "gllm.service.server",
    "VLLMService": "gllm.service.service",
    "setup_logging": "gllm.service.logs",
}
"""What is offered here is imported when it is asked for: `gllm --version` waits for none of it."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
