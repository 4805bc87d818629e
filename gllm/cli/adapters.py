"""`gllm adapters`: LoRA adapters on top of the models that workers serve."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gllm.cli.asking import add_place, ask

if TYPE_CHECKING:
    from gllm.cli.gateway import Gateway

DONE = 0


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "adapters",
        help="load and unload LoRA adapters",
        description="Load and unload LoRA adapters: each is a model of its own for callers, on top of what is served.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    load = actions.add_parser("load", help="load one", description="Load an adapter under a name of its own.")
    load.add_argument("name", metavar="NAME", help="what callers call it")
    load.add_argument("path", metavar="PATH", help="a folder that the workers can read, or a hub name")
    add_place(load)
    load.set_defaults(run=run_load)
    unload = actions.add_parser("unload", help="unload one", description="Unload an adapter.")
    unload.add_argument("name", metavar="NAME", help="what callers call it")
    add_place(unload)
    unload.set_defaults(run=run_unload)


def run_load(args: argparse.Namespace) -> int:
    async def loaded(gateway: Gateway) -> int:
        from app.cluster.control import Adapter

        await gateway.put_adapter(Adapter(name=args.name, path=args.path))
        print(f"{args.name} is loaded.")
        return DONE

    return ask(args, loaded)


def run_unload(args: argparse.Namespace) -> int:
    async def unloaded(gateway: Gateway) -> int:
        await gateway.drop_adapter(args.name)
        print(f"{args.name} is unloaded.")
        return DONE

    return ask(args, unloaded)
