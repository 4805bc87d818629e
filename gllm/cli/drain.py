"""`gllm drain`: a worker gets no more requests, and finishes those that it has."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gllm.cli.asking import add_place, ask

if TYPE_CHECKING:
    from gllm.cli.gateway import Gateway

TOLD = 0


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "drain",
        help="send a worker no more requests, or again some",
        description="Send a worker no more requests: it finishes those that it has, and keeps its engine.",
    )
    parser.add_argument("worker", metavar="WORKER", help="its name in gllm status")
    parser.add_argument("--undo", action="store_true", help="send it requests again")
    add_place(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    async def told(gateway: Gateway) -> int:
        if args.undo:
            await gateway.admit(args.worker)
            print(f"{args.worker} gets requests again.")
        else:
            await gateway.drain(args.worker)
            print(f"{args.worker} gets no more requests, and finishes those that it has.")
        return TOLD

    return ask(args, told)
