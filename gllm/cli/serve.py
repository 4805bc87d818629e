"""`gllm serve`: a gateway and its engines, from settings and flags, until Ctrl+C."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.settings import Settings

USAGE = 2

FLAGS = {
    "--host": ("host", "address to listen on (HOST, default 127.0.0.1)"),
    "--port": ("port", "port to listen on (PORT, default 8000)"),
    "--engine": ("engine_type", "transformers, vllm or external (ENGINE_TYPE)"),
    "--model": ("model_name", "model to load: a folder or a hub name (MODEL_NAME, default: the demo model)"),
    "--processes": ("processes", "gateway processes that share the port, each with a core (PROCESSES)"),
    "--replicas": ("engine_replicas", "how many engines to start (ENGINE_REPLICAS)"),
    "--gpus": ("gpus", "GPUs for the engines, such as 0,1, or none (GPUS)"),
    "--tenants-file": ("tenants_file", "TOML file of tenants and their keys (TENANTS_FILE)"),
    "--log-level": ("log_level", "debug, info, warning or error (LOG_LEVEL)"),
    "--log-format": ("log_format", "auto, json or text (LOG_FORMAT)"),
}
"""A flag is a setting by another name, and wins over the environment and `.env`."""

SETTINGS = {setting for setting, _ in FLAGS.values()} | {"allow_anonymous"}


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="start a gateway and its engines",
        description="Start a gateway and its engines. Ctrl+C stops both.",
        epilog="Every flag is also a setting, and there are more: docs/configuration.md, .env.example.",
    )
    for flag, (setting, text) in FLAGS.items():
        parser.add_argument(flag, dest=setting, metavar=flag.rpartition("-")[2].upper(), help=text)
    parser.add_argument(
        "--engine-url",
        dest="engine_urls",
        action="append",
        metavar="URL",
        help="a running OpenAI-compatible server to use; may be repeated (ENGINE_URLS)",
    )
    parser.add_argument(
        "--allow-anonymous",
        action="store_const",
        const=True,
        help="let callers without a key use a gateway beyond loopback (ALLOW_ANONYMOUS)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="neither greeting nor progress: only the log, and failures"
    )
    parser.add_argument("--as-process", dest="process", type=int, help=argparse.SUPPRESS)  # one of several
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from app.settings import BadSetting
    from gllm.cli.logs import held_back

    early = held_back()
    try:
        settings = settings_from(args)
        if settings.listen.processes > 1 and args.process is None:
            from gllm.cli import several

            return several.serve(settings, sys.argv[1:], quiet=args.quiet)
        from gllm.cli.serving import serve

        if args.process is None:
            return serve(settings, early, quiet=args.quiet)
        from gllm.cli.family import family_of

        return serve(settings, early, quiet=True, family=family_of(settings, args.process))
    except BadSetting as error:
        print(f"gllm: {error}", file=sys.stderr)
        return USAGE


def settings_from(args: argparse.Namespace) -> Settings:
    from app.settings import Settings

    flags = {name: value for name, value in vars(args).items() if name in SETTINGS}
    if args.engine_urls:
        flags["engine_urls"] = ",".join(args.engine_urls)
        flags["engine_type"] = args.engine_type or "external"
    settings = Settings.load(**flags)
    return settings if args.process is None else Settings.load(**flags, **_of_one(settings, args.process))


def _of_one(settings: Settings, number: int) -> dict[str, Any]:
    """What each of several processes has for itself. The first one's places are those of a single one."""
    from app.settings.parts import parts_of

    folder = settings.storage.state_dir
    return {
        **{name.lower(): part for name, part in parts_of(settings, number).items()},
        "metrics_port": (settings.telemetry.metrics_port or 0) + number,
        "state_dir": folder / f"process-{number}" if number else folder,
    }
