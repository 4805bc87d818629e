"""`gllm worker`: one engine and its GPUs, for gateways here or elsewhere, until Ctrl+C."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.settings import Settings
    from gllm.cli.working import Station

USAGE = 2
PORT = 8976
STARTED_HERE = ("transformers", "vllm", "command")

FLAGS = {
    "--engine": ("engine_type", "transformers, vllm or command (ENGINE_TYPE)"),
    "--engine-port": ("engine_port_start", "first port tried for the engine (ENGINE_PORT_START, default 8100)"),
    "--gpus": ("gpus", "GPUs of this worker, such as 0,1, or none (GPUS)"),
    "--log-level": ("log_level", "debug, info, warning or error (LOG_LEVEL)"),
    "--log-format": ("log_format", "auto, json or text (LOG_FORMAT)"),
}
"""A flag is a setting by another name, and wins over the environment and `.env`."""


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "worker",
        help="own one engine and its GPUs, for gateways here or elsewhere",
        usage="gllm worker [options] [-- ENGINE_ARGS ...]",
        description="Own one engine and its GPUs, and do with it what gateways say. Ctrl+C stops both.",
        epilog="What follows -- goes to the engine's command line (ENGINE_ARGS). More settings: docs/configuration.md.",
    )
    add = parser.add_argument
    add("--host", help="address to listen on (HOST of the environment, default 127.0.0.1)")
    add("--port", type=int, help=f"port to listen on (PORT of the environment, default {PORT})")
    add("--name", help="what gateways call this worker (default: this machine's name and the port)")
    add("--advertise", metavar="HOST", help="name or address by which gateways reach it (default: found out)")
    add("--model", "--load-model", dest="model_name", help="model to load at once: a folder or a hub name (MODEL_NAME)")
    for flag, (setting, text) in FLAGS.items():
        add(flag, dest=setting, metavar=flag.rpartition("-")[2].upper(), help=text)
    add(
        *("--gateway", "--gateways"),
        dest="gateways",
        action="append",
        metavar="URL",
        help="a gateway to register with; may be repeated (GATEWAY_URLS)",
    )
    add("--secret-file", type=Path, help="file with the secret of the cluster, instead of CLUSTER_SECRET")
    add(
        "--allow-anonymous",
        action="store_const",
        const=True,
        help="let callers without a secret command a worker beyond loopback (ALLOW_ANONYMOUS)",
    )
    add("engine_args", nargs="*", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from app.settings import BadSetting
    from gllm.cli.logs import held_back

    early = held_back()
    try:
        station = station_from(args, os.environ)
        from gllm.cli.working import work

        return work(station, early)
    except BadSetting as error:
        print(f"gllm: {error}", file=sys.stderr)
        return USAGE


def station_from(args: argparse.Namespace, environment: Mapping[str, str]) -> Station:
    from app.settings import BadSetting
    from gllm.cli.working import Station

    settings = settings_from(args, environment)
    if settings.engine.type not in STARTED_HERE:
        raise BadSetting(
            f"A worker starts its engine: ENGINE_TYPE={settings.engine.type} is for gateways; add --engine."
        )
    host = args.host or environment.get("HOST") or "127.0.0.1"
    _check_secret(settings, host)
    if args.advertise is not None and not re.fullmatch(r"[A-Za-z0-9.:_-]+", args.advertise):
        raise BadSetting("--advertise takes a host name or an address, without a scheme.")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", args.name):
        raise BadSetting("--name takes up to 63 letters, digits, '.', '_' and '-'.")
    return Station(
        settings,
        host,
        _port(args, environment),
        args.name,
        args.advertise or (environment.get("SELF_HOSTNAME") if _is_of_gllm(environment) else None),
        loads=args.model_name is not None or settings.engine.model != type(settings.engine)().model,
    )


def settings_from(args: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """HOST and PORT of a `.env` are its gateway's, and so is ENGINE_REPLICAS; a worker has its own."""
    from app.settings import BadSetting, Settings
    from app.settings.reading import secret_in

    if args.engine_args and not args.engine_args[0].startswith("-"):
        raise BadSetting(f"'{args.engine_args[0]}' is no option; what is meant for the engine follows '--'.")
    flags = {setting: getattr(args, setting) for setting, _ in FLAGS.values()}
    if flags["gpus"] is None and not environment.get("GPUS"):
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        flags["gpus"] = "none" if visible in ("-1", "NoDevFiles") else visible
    flags |= {"model_name": args.model_name, "allow_anonymous": args.allow_anonymous}
    flags |= {"host": "127.0.0.1", "port": 0, "engine_replicas": 1}
    if args.engine_args:
        flags["engine_args"] = shlex.join(args.engine_args)
    if args.gateways:
        flags["gateway_urls"] = ",".join(args.gateways)
    if args.secret_file is not None:
        flags["cluster_secret"] = secret_in(args.secret_file, "--secret-file")
    return Settings.load({**_of_gllm(environment), **environment}, **flags)


def _of_gllm(environment: Mapping[str, str]) -> dict[str, str]:
    """GLLM told its workers in these names. VLLM_PORT is one of vLLM's own, too, so it counts in their company only."""
    if not _is_of_gllm(environment):
        return {}
    router = environment["ROUTER_ADDRESS"]
    meant = {"GATEWAY_URLS": router if "//" in router else f"http://{router}"}
    return meant | ({"ENGINE_PORT_START": environment["VLLM_PORT"]} if environment.get("VLLM_PORT") else {})


def _is_of_gllm(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("ROUTER_ADDRESS"))


def _check_secret(settings: Settings, host: str) -> None:
    from app.settings import BadSetting
    from app.settings.values import is_loopback

    if not (is_loopback(host) or settings.cluster.secret or settings.listen.allow_anonymous):
        raise BadSetting(
            f"--host {host} is reachable from other machines and nothing asks callers for a secret: "
            "set CLUSTER_SECRET, listen on 127.0.0.1, or set ALLOW_ANONYMOUS=true if that is what you want."
        )


def _port(args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    from app.settings import BadSetting

    given = args.port if args.port is not None else environment.get("PORT") or PORT
    try:
        port = int(given)
    except ValueError:
        port = -1
    if not 0 <= port <= 65_535:
        raise BadSetting(f"PORT must be a number from 0 to 65535, not '{given}'.")
    return port


def own_name(port: int) -> str:
    """As this machine is called, and the port."""
    machine = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")[:48] or "worker"
    return f"{machine}-{port}"
