"""`gllm load`: has workers serve a model, and shows how far they are; or gives up what is being loaded."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from gllm.cli.asking import FAILED, Misused, add_place, ask, seconds

if TYPE_CHECKING:
    from gllm.cli.gateway import Gateway

DONE, INTERRUPTED = 0, 130


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "load",
        help="load a model on the workers of a running gateway",
        usage="gllm load (MODEL | --cancel) [options] [-- ENGINE_ARGS ...]",
        description="Load a model on the workers of a running gateway, in the place of what they serve: first on one, "
        "then on the others in rounds, so that answers go on. If one fails, all go back to what they served.",
        epilog="What follows -- goes to the command line of every engine. Ctrl+C stops the watching, not the loading; "
        "--cancel does.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a folder that the workers can read, or a hub name")
    parser.add_argument(
        "--name", action="append", default=[], help="what callers call it; may be repeated (default: the model's own)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--workers", nargs="+", default=[], metavar="WORKER", help="on these only (default: on all)")
    which.add_argument("--count", type=int, metavar="N", help="on so many of them, whichever suit best")
    parser.add_argument("--force", action="store_true", help="also where it is served already")
    parser.add_argument(
        "--drain-seconds",
        type=seconds,
        metavar="S",
        help="how long running answers may go on (default: the gateway's SWAP_DRAIN_SECONDS)",
    )
    parser.add_argument(
        "--cancel", action="store_true", help="give up what is being loaded: its workers get back what they served"
    )
    add_place(parser)
    parser.set_defaults(run=run, engine_args=())


def run(args: argparse.Namespace) -> int:
    async def misused(gateway: Gateway) -> int:
        raise Misused("Give a MODEL to load, or --cancel to give up what is being loaded.")

    if bool(args.model) is args.cancel:
        return ask(args, misused)
    return ask(args, _cancelled) if args.cancel else _load(args)


async def _cancelled(gateway: Gateway) -> int:
    """Returns when all serve again what they did."""
    from gllm.cli.panel import ENDINGS

    account = await gateway.cancel()
    if account.outcome != "cancelled":
        print(f"gllm: Nothing is being loaded; the last one, {account.model}, is {account.outcome}.", file=sys.stderr)
        return FAILED
    for each in account.workers:
        if each.step in ENDINGS:
            print(f"{each.worker}: {ENDINGS[each.step]}")
    print(f"{account.model} is given up (after {account.seconds:.1f} s).")
    return FAILED if any(each.step == "left" for each in account.workers) else DONE


def _load(args: argparse.Namespace) -> int:
    async def loaded(gateway: Gateway) -> int:
        from gllm.cli.gateway import Load
        from gllm.cli.panel import Panel, watching
        from gllm.cli.screen import Screen

        wanted = Load(
            model=args.model,
            names=tuple(args.name),
            args=args.engine_args or None,
            workers=tuple(args.workers),
            count=args.count,
            force=args.force,
            drain_s=args.drain_seconds,
        )
        panel = Panel(Screen(sys.stdout) if sys.stdout.isatty() else None)
        with watching(panel, f"Loading {args.model}"):
            async for news in gateway.load(wanted):
                panel.follow(news)
        print(f"{args.model} is loaded (after {panel.seconds:.1f} s).")
        return DONE

    try:
        return ask(args, loaded)
    except KeyboardInterrupt:
        print(f"gllm: The gateway goes on loading {args.model}; gllm status shows how far it is.", file=sys.stderr)
        return INTERRUPTED
