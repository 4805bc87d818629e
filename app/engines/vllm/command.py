"""The command line of `vllm serve`, from settings."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from app.settings import Engine


def executable() -> str | None:
    """The `vllm` of this environment, else the first on the PATH."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if beside.exists() else shutil.which("vllm")


def arguments(engine: Engine, *, host: str, port: int, gpus: int, on_cpu: bool, names: Sequence[str] = ()) -> list[str]:
    """What is ours first, ENGINE_ARGS last, so that they have the last word. vLLM 0.8.5 already knew all of ours: what
    only newer ones know is for ENGINE_ARGS, since an older one would not start."""
    return [
        *("serve", engine.model),
        *("--host", host, "--port", str(port)),
        *("--served-model-name", *(names or (engine.served_name,))),
        *("--uvicorn-log-level", "warning"),  # else every health probe is a line of log
        "--enable-prompt-tokens-details",  # usage tells how much of a prompt came from the cache
        *(("--tensor-parallel-size", str(gpus)) if gpus > 1 else ()),
        *(("--enforce-eager",) if on_cpu else ()),  # compiling takes a compiler, and minutes
        *engine.args,
    ]


TRACES_TO = "--otlp-traces-endpoint"
TRACED_OVER_HTTP = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
"""It would speak gRPC otherwise."""


def traced_to(collector: str) -> tuple[str, ...]:
    return TRACES_TO, collector


def names_a_collector(engine: Engine) -> bool:
    """In ENGINE_ARGS, which have the last word."""
    return any(word.partition("=")[0].replace("_", "-") == TRACES_TO for word in engine.args)


def environment(engine: Engine, *, on_cpu: bool, threads: int) -> dict[str, str]:
    """Defaults: what the operator's own environment says stays as it is."""
    env = {"VLLM_NO_USAGE_STATS": "1"}
    if Path(engine.model).is_dir():
        env["HF_HUB_OFFLINE"] = "1"
    if "--enable-lora" in engine.args:
        env["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if on_cpu:
        env |= {
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCH_COMPILE_DISABLE": "1",  # else the first logprobs are compiled all the same, and everyone waits
            "OMP_NUM_THREADS": str(threads),
        }
    return env
