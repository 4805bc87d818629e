"""Which engines to start, with which command, port and GPUs: decided from values, before anything is started."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from app.engines.vllm import command as vllm
from app.engines.vllm import versions
from app.settings import Engine

ROOT = Path(__file__).parents[3]
"""The folder that `app` is in: of a checkout, or of installed packages."""

HOST = "127.0.0.1"
"""Engines are for the gateway alone."""


@dataclass(frozen=True)
class Machine:
    has_gpu: bool
    cores: int

    @classmethod
    def here(cls) -> "Machine":
        devices = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        return cls(any(Path(each).exists() for each in devices), cores or 1)


@dataclass(frozen=True)
class Launch:
    """One engine to start."""

    name: str
    port: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    """Set for the engine, whatever the gateway's environment says."""
    env_defaults: Mapping[str, str]
    """Set where the gateway's environment says nothing."""

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}"


@dataclass(frozen=True)
class Place:
    """Where one engine is to run."""

    port: int
    gpus: tuple[str, ...] | None
    """None: nobody has said; empty: on the CPU."""
    on_cpu: bool
    threads: int


Build = Callable[[Engine, Place], tuple[list[str], dict[str, str]]]
"""The command of an engine, and its environment's defaults."""


def transformers(engine: Engine, place: Place) -> tuple[list[str], dict[str, str]]:
    argv = [
        *(sys.executable, "-P", "-m", "app.engines.transformers"),  # -P: an `app` where the user stands is not ours
        *("--model", engine.model),
        *("--served-model-name", engine.served_name),
        *("--host", HOST, "--port", str(place.port)),
        *("--device", "cpu" if place.gpus == () else "auto"),
        *engine.args,
    ]
    env = {"PYTHONPATH": str(ROOT)} if ROOT.name not in ("site-packages", "dist-packages") else {}
    return argv, env | ({"OMP_NUM_THREADS": str(place.threads)} if place.on_cpu else {})


def vllm_serve(engine: Engine, place: Place) -> tuple[list[str], dict[str, str]]:
    argv = vllm.arguments(engine, host=HOST, port=place.port, gpus=len(place.gpus or ()), on_cpu=place.on_cpu)
    return [vllm.executable() or "vllm", *argv], vllm.environment(engine, on_cpu=place.on_cpu, threads=place.threads)


BUILDS: Mapping[str, Build] = {"transformers": transformers, "vllm": vllm_serve}


def missing(engine: Engine) -> str | None:
    """What must be installed first, as a sentence. Nothing is imported to find out."""
    match engine.type:
        case "transformers" if not all(find_spec(name) for name in ("torch", "transformers")):
            needed = "PyTorch and Transformers"
        case "vllm" if vllm.executable() is None:
            needed = "vLLM"
        case _:
            return None
    return (
        f"ENGINE_TYPE={engine.type} needs {needed} beside the gateway: install the extra '{engine.type}' of this "
        "package, or use a running server (ENGINE_URLS)."
    )


def doubt(engine: Engine) -> str | None:
    """What may be wrong with what is installed, as a sentence. It is started all the same."""
    executable = vllm.executable() if engine.type == "vllm" else None
    return versions.doubt(executable) if executable else None


def plan(engine: Engine, machine: Machine, ports: Iterator[int], build: Build | None = None) -> tuple[Launch, ...]:
    build = build or BUILDS[engine.type]
    on_cpu = engine.gpus == () or not machine.has_gpu
    launches = []
    for number in range(engine.replicas):
        gpus = _share(engine.gpus, number, engine.replicas)
        place = Place(next(ports), gpus, on_cpu, max(1, machine.cores // engine.replicas))
        argv, defaults = build(engine, place)
        env = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        launches.append(Launch(f"engine-{number}", place.port, tuple(argv), env, defaults))
    return tuple(launches)


def _share(gpus: tuple[str, ...] | None, number: int, of: int) -> tuple[str, ...] | None:
    if gpus is None:
        return None
    size = len(gpus) // of
    return gpus[number * size : (number + 1) * size]
