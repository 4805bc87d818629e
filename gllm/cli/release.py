"""`gllm release`: stops engines, so that their GPUs are free for others."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gllm.cli.asking import FAILED, add_place, ask, seconds

if TYPE_CHECKING:
    from gllm.cli.gateway import Gateway

RELEASED = 0


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "release",
        help="stop the engines of workers, and give their GPUs back",
        description="Stop the engines of workers, and give their GPUs back. The workers stay, for another gllm load.",
    )
    parser.add_argument("workers", nargs="*", metavar="WORKER", help="which ones (default: all)")
    parser.add_argument(
        "--drain-seconds",
        type=seconds,
        metavar="S",
        help="how long running answers may go on (default: the gateway's SWAP_DRAIN_SECONDS)",
    )
    add_place(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    async def released(gateway: Gateway) -> int:
        import asyncio

        workers = args.workers or [member.name for member in await gateway.workers()]
        told = await asyncio.gather(*(_one(gateway, worker, args.drain_seconds) for worker in workers))
        if not workers:
            print("There are no workers.")
        return RELEASED if all(told) else FAILED

    return ask(args, released)


async def _one(gateway: Gateway, worker: str, drain_s: float | None) -> bool:
    """Each is told of when it is done, whatever becomes of the others."""
    import sys

    from gllm.cli.gateway import NoAnswer

    try:
        released = await gateway.release(worker, drain_s)
    except NoAnswer as error:
        print(f"gllm: {worker}: {error}", file=sys.stderr)
        return False
    proof = "its GPUs' memory is free" if released.proved else f"its engine is gone. {released.note}".rstrip(". ")
    print(f"{worker} is released: {proof}.", flush=True)
    return True
