"""`gllm start-balancer`: the gateway of a cluster by itself, for workers that somebody else starts."""

from __future__ import annotations

import argparse
import sys
from typing import Any

FAILED, MISUSED = 1, 2


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "start-balancer",
        help="start the gateway of a cluster by itself",
        description="Start the gateway of a cluster by itself: for workers that run already, or register later.",
    )
    parser.add_argument(
        "-p", "--port", type=int, required=True, metavar="PORT", help="port to listen on; 0 takes any free one"
    )
    parser.add_argument(
        "--ip",
        help="address to listen on (default: 0.0.0.0 where TENANTS_FILE or ALLOW_ANONYMOUS says who may call, else "
        "127.0.0.1)",
    )
    parser.add_argument(
        "-ew", "--existing-workers", nargs="*", default=[], metavar="URL", help="workers that run already"
    )
    parser.add_argument(
        "--load-model", metavar="MODEL", help="a folder or a hub name, loaded on those workers once all are there"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from app.gateway.listener import CannotListen
    from app.settings import BadSetting
    from gllm.cli import cluster, plan
    from gllm.cli.listening import listening

    try:
        if args.load_model and not args.existing_workers:
            raise plan.BadPlan("--load-model requires --existing-workers to be specified.")
        at = listening(args.ip, args.port)
        planned = plan.with_others(args.existing_workers, at, args.load_model)
    except (BadSetting, plan.BadPlan) as error:
        print(f"gllm: {error}", file=sys.stderr)
        return MISUSED
    except CannotListen as error:
        print(f"gllm: {error}", file=sys.stderr)
        return FAILED
    return cluster.run(planned, at.settings.storage.state_dir)
