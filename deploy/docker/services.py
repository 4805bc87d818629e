"""The services of docker-compose.yml, and how a container engine is told of one without Compose."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).parents[2]
LIMITS = {"mem_limit": "memory", "pids_limit": "pids-limit", "user": "user"}

Service = Mapping[str, Any]


def services(environment: Mapping[str, str]) -> dict[str, Any]:
    text = (CHECKOUT / "docker-compose.yml").read_text()
    found: dict[str, Any] = yaml.safe_load(_interpolated(text, environment))["services"]
    return found


def _interpolated(text: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: environment.get(m[1]) or m[2] or "", text)


def run_arguments(name: str, service: Service, project: str) -> list[str]:
    """What `run` has to be told, so that the container is as the file says. Networks become one."""
    entrypoint = list(service.get("entrypoint", ()))
    environment = {key: str(value) for key, value in service.get("environment", {}).items()}
    volumes = [_volume(each, project) for each in service.get("volumes", ())]
    flags = [
        *(["--init"] if service.get("init") else []),
        *(["--read-only"] if service.get("read_only") else []),
        *(f"--cap-drop={each}" for each in service.get("cap_drop", ())),
        *(f"--security-opt={each}" for each in service.get("security_opt", ())),
        *(f"--tmpfs={each}" for each in service.get("tmpfs", ())),
        *(f"--{flag}={service[key]}" for key, flag in LIMITS.items() if key in service),
        *(f"--env={key}={value}" for key, value in environment.items()),
        *(f"--volume={each}" for each in volumes),
        *([f"--entrypoint={entrypoint[0]}"] if entrypoint else []),
    ]
    if service.get("network_mode") == "none":
        flags.append("--network=none")
    else:
        flags += [f"--network={project}", f"--network-alias={name}"]
    return [*flags, service["image"], *entrypoint[1:], *map(str, service.get("command", ()))]


def _volume(text: str, project: str) -> str:
    source, _, rest = text.partition(":")
    return f"{(CHECKOUT / source).resolve()}:{rest}" if source.startswith((".", "/")) else f"{project}-{source}:{rest}"
