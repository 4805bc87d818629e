"""`gllm status`: the workers of a gateway, and what each is doing."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from gllm.cli.asking import Misused, add_place, ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gllm.cli.gateway import Gateway, Member

TOLD = 0

EVERY_S = 1.0

HEAD = ("WORKER", "STATE", "MODEL", "GPUS", "RUNNING", "STARTS", "SINCE", "REASON")
NUMBERS = (4, 5, 6)


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "status",
        help="show the workers of a running gateway",
        description="Show the workers of a running gateway: what each serves, how far it is, and why.",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("-w", "--watch", action="store_true", help="again and again, until Ctrl+C")
    shape.add_argument("--json", action="store_true", help="as JSON")
    add_place(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.watch:
        try:
            return ask(args, _watched)
        except KeyboardInterrupt:  # the way to end it
            print()
            return TOLD
    return ask(args, _as_json if args.json else _once)


async def _once(gateway: Gateway) -> int:
    print("\n".join(table(await gateway.workers())))
    return TOLD


async def _as_json(gateway: Gateway) -> int:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(await gateway.workers()), indent=2).decode())
    return TOLD


async def _watched(gateway: Gateway) -> int:
    import asyncio

    from gllm.cli.gateway import Unreachable
    from gllm.cli.screen import Screen

    if not sys.stdout.isatty():
        raise Misused("--watch draws on a terminal; for programs there is --json.")
    screen = Screen(sys.stdout)
    shown: list[str] = []
    while True:
        try:
            shown = table(await gateway.workers())
            screen.status(*shown)
        except Unreachable as error:  # it may come back: what was seen last stays
            screen.status(*shown, str(error))
        await asyncio.sleep(EVERY_S)


def table(members: Sequence[Member]) -> list[str]:
    from gllm.cli import table

    if not members:
        return ["There are no workers."]
    return list(table.lines(HEAD, [_row(member) for member in members], numbers=NUMBERS))


def _row(member: Member) -> tuple[str, ...]:
    return (
        member.name,
        _state(member),
        ", ".join((*_models(member), *(adapter.name for adapter in member.adapters))) or "-",
        ",".join(member.gpus) or "-",
        "-" if member.running is None else f"{member.running}/{member.slots}",
        str(member.starts),
        "-" if member.since_s is None else lasting(member.since_s),
        member.failure.reason if member.failure and not member.reason else member.reason,
    )


def _models(member: Member) -> tuple[str, ...]:
    """What it serves, or is about to."""
    if member.names or member.order is None:
        return member.names
    return member.order.names or (member.order.model,)


def _state(member: Member) -> str:
    if not member.reachable:
        return member.state.value if member.state == "stopped" else "unreachable"
    if member.progress is None:
        return member.state.value
    part = "" if member.progress.part is None else f" {member.progress.part * 100:.0f} %"
    step = "" if member.progress.step == member.state else f" ({member.progress.step})"
    return f"{member.state.value}{step}{part}"


def lasting(seconds: float) -> str:
    """Its two largest units at most, so that it stays short for as long as it lasts."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
