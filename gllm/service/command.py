"""The command that starts one server, from a configuration."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from app.cluster.launchers.plan import BUILDS, Machine, Place, missing
from app.settings import Engine
from gllm.service.config import EngineType, LLMConfig
from gllm.service.errors import StartFailed
from gllm.service.logs import LEVEL_VARIABLE

LORA_NAME = "lora_adapter"
"""The name under which vLLM serves the adapter of `lora_path`."""

_TAKEN_BY_TRANSFORMERS = {"model_name", "dtype", "enforce_eager", "llm_kwargs"}
"""It has no other way than to be eager."""

_NOT_OPTIONS = {"model_name", "lora_path", "llm_kwargs"}


@dataclass(frozen=True)
class Command:
    argv: tuple[str, ...]
    env: Mapping[str, str]


def command(
    config: LLMConfig, engine: EngineType, gpu_ids: Sequence[int], host: str, port: int, threads: int | None
) -> Command:
    """The engines' own commands, as the gateway starts them, with the configuration's options behind."""
    options = _vllm_options(config) if engine == "vllm" else _transformers_options(config)
    args = ("--host", host, *_flags(options))
    settings = Engine(type=engine, model=config.model_name, args=args)
    if missing(settings):
        needed = {"vllm": "vLLM", "transformers": "PyTorch and Transformers"}[engine]
        raise StartFailed(f"engine={engine!r} needs {needed} beside this package: install the extra '{engine}'.")
    machine = Machine.here()
    gpus = tuple(map(str, gpu_ids))
    place = Place(port, gpus, not (gpus and machine.has_gpu), threads or machine.cores)
    argv, defaults = BUILDS[engine](settings, place)
    return Command(tuple(argv), {**_log_level(), **defaults, **os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)})


def check(config: LLMConfig, engine: EngineType) -> None:
    """What was asked for and would be left out is an error, before anything is started."""
    if engine not in get_args(EngineType):
        raise ValueError(f"engine={engine!r} is none of {', '.join(map(repr, sorted(get_args(EngineType))))}.")
    if engine == "transformers":
        _transformers_options(config)


def _vllm_options(config: LLMConfig) -> dict[str, Any]:
    given = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in _NOT_OPTIONS}
    options = {name: value for name, value in given.items() if value is not None and value is not False}
    if config.lora_path is not None:
        adapter = json.dumps({"name": LORA_NAME, "path": config.lora_path})
        options |= {"enable_lora": True, "lora_modules": [adapter]}
    return options | config.llm_kwargs


def _transformers_options(config: LLMConfig) -> dict[str, Any]:
    plain = LLMConfig(config.model_name)
    asked = [
        each.name
        for each in fields(config)
        if each.name not in _TAKEN_BY_TRANSFORMERS and getattr(config, each.name) != getattr(plain, each.name)
    ]
    if asked:
        raise ValueError(f"engine='transformers' does not offer {', '.join(asked)}; engine='vllm' does.")
    return {"dtype": config.dtype} | config.llm_kwargs


def _flags(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                continue
            case True:
                yield f"--{flag}"
            case False:
                yield f"--no-{flag}"
            case dict():
                yield f"--{flag}={json.dumps(value)}"
            case list() | tuple():
                yield f"--{flag}"
                yield from map(str, value)
            case _:
                yield f"--{flag}={value}"


def _log_level() -> dict[str, str]:
    level = os.environ.get(LEVEL_VARIABLE)
    return {"VLLM_LOGGING_LEVEL": level} if level else {}
