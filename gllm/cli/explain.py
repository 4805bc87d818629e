"""`gllm explain`: why a request went as it did."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gllm.cli.asking import Misused, add_place, ask

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from app.telemetry.explanation import Explanation, Requests, Summary
    from gllm.cli.gateway import Gateway

TOLD, NONE_THERE = 0, 1

SHOWN = 20

HEAD = ("CAME (UTC)", "OUTCOME", "TOOK", "QUEUED", "CALL", "MODEL", "TENANT", "REPLICA", "TOKENS", "ID")
NUMBERS = (2, 3, 8)


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "explain",
        help="explain a request: where its time went, and why",
        description="Explain a request that a running gateway knows: what was decided about it, and by which facts. "
        "Without ID or --last: the latest requests, one a line.",
        epilog="A gateway keeps the last JOURNAL_REQUESTS ones of its own, and those that still run or wait. The id is "
        "in each answer's `x-request-id`, and in the log.",
    )
    parser.add_argument("id", nargs="?", metavar="ID", help="the request's id")
    parser.add_argument("--last", action="store_true", help="the newest one")
    parser.add_argument("--json", action="store_true", help="as JSON")
    choice = parser.add_argument_group("of which requests (with --last, or in the list)")
    choice.add_argument("--outcome", metavar="WORD", help="that ended so, such as ok, rate_limited or queue_full")
    choice.add_argument("--tenant", metavar="NAME", help="of this tenant")
    choice.add_argument("--model", metavar="NAME", help="of this model")
    choice.add_argument("--limit", type=int, metavar="N", help=f"so many at most (default: {SHOWN})")
    add_place(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    return ask(args, _question(args))


def _question(args: argparse.Namespace) -> Callable[[Gateway], Coroutine[Any, Any, int]]:
    async def one(gateway: Gateway) -> int:
        return _show(await gateway.request(args.id), args)

    async def last(gateway: Gateway) -> int:
        newest = (await gateway.requests(limit=1, **_filters(args))).requests
        if not newest:
            print("There is no such request.")
            return NONE_THERE
        return _show(await gateway.request(newest[0].id), args)

    async def several(gateway: Gateway) -> int:
        return _show(await gateway.requests(limit=args.limit or SHOWN, **_filters(args)), args)

    async def misused(gateway: Gateway) -> int:
        raise Misused("Give either an ID, or --last, or filters.")

    if args.id is not None:
        return misused if args.last or args.limit or _filters(args) else one
    return last if args.last else several


def _filters(args: argparse.Namespace) -> dict[str, str]:
    given = {"outcome": args.outcome, "tenant": args.tenant, "model": args.model}
    return {name: value for name, value in given.items() if value is not None}


def _show(page: Requests | Explanation, args: argparse.Namespace) -> int:
    import msgspec

    from app.telemetry.explanation import Explanation
    from gllm.cli.sentences import told

    if args.json:
        print(msgspec.json.format(msgspec.json.encode(page), indent=2).decode())
    elif isinstance(page, Explanation):
        print("\n".join(told(page)))
    else:
        print("\n".join(_listed(page)))
    return TOLD


def _listed(page: Requests) -> list[str]:
    from gllm.cli import table

    missing = [f"{each} did not answer: its requests are missing." for each in page.silent]
    if not page.requests:
        return ["There are no such requests.", *missing]
    return [*table.lines(HEAD, [_row(each) for each in page.requests], numbers=NUMBERS), *missing]


def _row(each: Summary) -> tuple[str, ...]:
    from app.telemetry.words import kind, lasting

    tokens = "-" if each.prompt_tokens is None else f"{each.prompt_tokens}+{each.completion_tokens}"
    return (
        f"{each.came:%H:%M:%S}",
        f"{each.status} {each.outcome}" if each.outcome is not None else each.state,
        lasting(each.duration_ms / 1e3),
        lasting(each.queue_ms / 1e3) if each.queue_ms else "-",
        kind(each.endpoint, stream=each.stream),
        each.model or "-",
        each.tenant or "-",
        each.replica or "-",
        tokens,
        each.id,
    )
