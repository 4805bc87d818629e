"""`gllm logs`: what a worker's engine says."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from gllm.cli.asking import add_place, ask

if TYPE_CHECKING:
    from gllm.cli.gateway import Gateway

TOLD = 0


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "logs",
        help="show what a worker's engine says",
        description="Show what a worker's engine said last.",
    )
    parser.add_argument("worker", metavar="WORKER", help="its name in gllm status")
    parser.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="so many lines (default: 50)")
    parser.add_argument("-f", "--follow", action="store_true", help="and all that it says from now on, until Ctrl+C")
    add_place(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    async def told(gateway: Gateway) -> int:
        async with gateway.logs(args.worker, args.lines, follow=args.follow) as pieces:
            async for piece in pieces:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        return TOLD

    try:
        return ask(args, told)
    except KeyboardInterrupt:
        if args.follow:  # the way to end it
            return TOLD
        raise
