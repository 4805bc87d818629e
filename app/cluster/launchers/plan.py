"""Which engines to start, with which command, port and GPUs: decided from values, before anything is started."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from app.engines.vllm import command as vllm
from app.engines.vllm import versions
from app.settings import Engine, Telemetry, otel

ROOT = Path(__file__).parents[3]
"""The folder that `app` is in: of a checkout, or of installed packages."""

HOST = "127.0.0.1"
"""Engines are for the gateway alone, unless whoever starts them says otherwise."""

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where somebody on this machine finds who listens everywhere."""

PLACEHOLDER = re.compile(r"\{(model|name|host|port)\}")
"""In the words of ENGINE_COMMAND."""


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
    host: str
    """Where it is reached from this machine."""
    port: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    """Set for the engine, whatever the gateway's environment says."""
    env_defaults: Mapping[str, str]
    """Set where the gateway's environment says nothing."""

    @property
    def base_url(self) -> str:
        return url_of(self.host, self.port)


NOT_TRACED = Telemetry(tracing=False)


@dataclass(frozen=True)
class Place:
    """Where one engine is to run, and under which names."""

    port: int
    gpus: tuple[str, ...] | None
    """None: nobody has said; empty: on the CPU."""
    on_cpu: bool
    threads: int
    host: str = HOST
    """The address it listens on."""
    names: tuple[str, ...] = ()
    """What callers call its model; empty: its own name."""
    telemetry: Telemetry = NOT_TRACED
    """Whether it sends traces, and where to."""


Build = Callable[[Engine, Place], tuple[list[str], dict[str, str]]]
"""The command of an engine, and its environment's defaults."""


def transformers(engine: Engine, place: Place) -> tuple[list[str], dict[str, str]]:
    argv = [
        *(sys.executable, "-P", "-m", "app.engines.transformers"),  # -P: an `app` where the user stands is not ours
        *("--model", engine.model),
        *("--served-model-name", *names_of(engine, place)),
        *("--host", place.host, "--port", str(place.port)),
        *("--device", "cpu" if place.gpus == () else "auto"),
        *engine.args,
    ]
    env = {"PYTHONPATH": str(ROOT)} if ROOT.name not in ("site-packages", "dist-packages") else {}
    return argv, env | ({"OMP_NUM_THREADS": str(place.threads)} if place.on_cpu else {})


def vllm_serve(engine: Engine, place: Place) -> tuple[list[str], dict[str, str]]:
    argv = vllm.arguments(
        engine,
        names=names_of(engine, place),
        host=place.host,
        port=place.port,
        gpus=len(place.gpus or ()),
        on_cpu=place.on_cpu,
    )
    executable = vllm.executable() or "vllm"
    env = vllm.environment(engine, on_cpu=place.on_cpu, threads=place.threads)
    if not place.telemetry.traced or vllm.names_a_collector(engine) or not versions.can_trace(executable):
        return [executable, *argv], env
    collector = otel.traces_endpoint(place.telemetry.otel)
    return [executable, *argv, *vllm.traced_to(collector)], env | vllm.TRACED_OVER_HTTP


def command(engine: Engine, place: Place) -> tuple[list[str], dict[str, str]]:
    """Any other server. What stands for something is replaced, and braces that stand for nothing stay."""
    meant = {"model": engine.model, "name": names_of(engine, place)[0], "host": place.host, "port": str(place.port)}
    return [_filled(word, meant) for word in (*engine.command, *engine.args)], {}


def _filled(word: str, meant: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda found: meant[found[1]], word)


BUILDS: Mapping[str, Build] = {"transformers": transformers, "vllm": vllm_serve, "command": command}


def names_of(engine: Engine, place: Place) -> tuple[str, ...]:
    return place.names or (engine.served_name,)


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


def doubts(engine: Engine, telemetry: Telemetry = NOT_TRACED) -> list[str]:
    """What may be wrong with what is installed, in sentences. It is started all the same."""
    executable = vllm.executable() if engine.type == "vllm" else None
    if executable is None:
        return []
    found = [versions.doubt(executable)]
    if telemetry.traced and not vllm.names_a_collector(engine):
        found.append(versions.untraced(executable))
    return [each for each in found if each]


def part(engine: Engine, machine: Machine, number: int) -> tuple[tuple[str, ...] | None, bool, int]:
    """What one of its replicas gets of the machine: GPUs, whether it is on the CPU, threads."""
    on_cpu = engine.gpus == () or not machine.has_gpu
    return _share(engine.gpus, number, engine.replicas), on_cpu, max(1, machine.cores // engine.replicas)


def launch(name: str, engine: Engine, place: Place, build: Build | None = None) -> Launch:
    argv, defaults = (build or BUILDS[engine.type])(engine, place)
    env = {} if place.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(place.gpus)}
    env |= _tracing(name, place.telemetry)
    host = WILDCARDS.get(place.host, place.host)
    return Launch(name, host, place.port, tuple(argv), env, defaults)


def _tracing(name: str, telemetry: Telemetry) -> dict[str, str]:
    """An engine has what the settings say, whatever part of them stands in `.env` and not in our environment."""
    if telemetry.traced:
        return {"ENABLE_TRACING": "true", **otel.of_engine(telemetry.otel, name)}
    return {"ENABLE_TRACING": "false"} if telemetry.otel else {}


def _share(gpus: tuple[str, ...] | None, number: int, of: int) -> tuple[str, ...] | None:
    if gpus is None:
        return None
    size = len(gpus) // of
    return gpus[number * size : (number + 1) * size]
