"""Which model is loaded, and how its servers run. Field for field what gserve had, in its order; `engine` is new."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

EngineType = Literal["vllm", "transformers"]

STARTUP_TIMEOUT_S = 180.0
CLIENT_TIMEOUT_S = 30.0
MAX_IN_FLIGHT = 128
"""As many sequences as our Transformers engine takes at once by default, batch and line together."""


@dataclass
class LLMConfig:
    """A model, in the words of vLLM. With `engine="transformers"` what that engine does not have is refused by name."""

    model_name: str
    """A name on the model hub, or a local folder."""
    tokenizer: str | None = None
    tokenizer_mode: str = "auto"
    trust_remote_code: bool = False
    dtype: str = "bfloat16"
    quantization: str | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    seed: int = 0
    gpu_memory_utilization: float | None = None
    enforce_eager: bool = False
    max_model_len: int | None = None
    download_dir: str | None = None
    lora_path: str | None = None
    """An adapter that every request then goes through."""
    llm_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further options of the engine, by their names with underscores; they have the last word."""


@dataclass
class ServeConfig:
    """How the servers of a `VLLMService` run: one for each GPU."""

    gpu_ids: list[int]
    host: str = "127.0.0.1"
    port: int | None = None
    """Of the first server; the next ones follow, and a taken one is skipped. None: any that are free."""
    startup_timeout: float | None = STARTUP_TIMEOUT_S
    """Seconds until a server must be ready. None: as long as it takes."""
    client_timeout: float | None = CLIENT_TIMEOUT_S
    """Seconds for each request of a batch, from when it is sent. None: as long as it takes."""
    verbose: bool = False
    """Show what the engines say."""
    engine: EngineType = "vllm"
    max_in_flight: int = MAX_IN_FLIGHT
    """Sequences that one server is given to work on at once."""


def check_timeout(name: str, seconds: float | None) -> None:
    """Before anything is started; a socket would blame the server for it."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(f"{name}={seconds}: it is seconds, more than 0; None waits as long as it takes.")
