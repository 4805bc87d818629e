"""`gllm usage`: who used how much, from a running gateway or from what one has written."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from gllm.cli import table

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWERED, FAILED, MISUSED = 0, 1, 2

NAMES = ("day", "tenant", "model")
COUNTS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")

WITHIN_S = 15.0


class Counts(TypedDict):
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Row(Counts):
    day: str
    tenant: str
    model: str


Page = TypedDict(
    "Page", {"from": str, "to": str, "scope": str, "note": str | None, "rows": list[Row], "totals": Counts}
)


class NoAnswer(Exception):
    """The text is a sentence for the person who asked."""


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "usage",
        help="show who used how many tokens",
        description="Show requests and tokens by day (UTC), tenant and model.",
        epilog="Asks the gateway at --url; with --state-dir it reads what a gateway wrote there, also when none runs.",
    )
    parser.add_argument("--from", dest="since", metavar="DAY", help="first day, such as 2026-01-31 (default: 30 days)")
    parser.add_argument("--to", dest="until", metavar="DAY", help="last day (default: today)")
    parser.add_argument("--tenant", metavar="NAME", help="of this tenant only")
    parser.add_argument("--model", metavar="NAME", help="of this model only")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", dest="shape", action="store_const", const="json", help="as JSON")
    shape.add_argument("--csv", dest="shape", action="store_const", const="csv", help="as CSV")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--url", default="http://127.0.0.1:8000", help="the gateway to ask (default: %(default)s)")
    place.add_argument("--state-dir", type=Path, metavar="FOLDER", help="read this STATE_DIR instead")
    parser.add_argument("--key", help="an admin's API key (better: GLLM_API_KEY in the environment)")
    parser.set_defaults(run=run, shape="table")


def run(args: argparse.Namespace) -> int:
    try:
        page = asked(args) if args.state_dir is None else read(args)
    except NoAnswer as error:
        print(f"gllm: {error}", file=sys.stderr)
        return FAILED
    except ValueError as error:
        print(f"gllm: {error}", file=sys.stderr)
        return MISUSED
    if page["note"]:
        print(f"gllm: {page['note']}", file=sys.stderr)
    _say(SHAPES[args.shape](page))
    return ANSWERED


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader has seen enough; and Python must not try once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def asked(args: argparse.Namespace) -> Page:
    """The gateway's own answer."""
    import httpx
    import msgspec

    url = _url(args.url)
    key = args.key or os.environ.get("GLLM_API_KEY")
    given = {"from": args.since, "to": args.until, "tenant": args.tenant, "model": args.model}
    try:
        answer = httpx.get(
            f"{url}/admin/usage",
            params={name: value for name, value in given.items() if value is not None},
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=WITHIN_S,
        )
        if answer.status_code == 200:
            return msgspec.json.decode(answer.content, type=Page)
        said = str(answer.json()["error"]["message"])
    except httpx.TransportError:
        raise NoAnswer(
            f"No gateway answers at {url}. To read what one has written: gllm usage --state-dir .state"
        ) from None
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError):
        raise NoAnswer(f"What answers at {url} is not this version of gllm.") from None
    raise NoAnswer(said) if answer.status_code != 400 else ValueError(said)


def _url(given: str) -> str:
    from app.settings.values import base_url

    try:
        return base_url(given)
    except ValueError:
        raise ValueError(f"--url must be a URL such as http://127.0.0.1:8000, not {given!r}") from None


def read(args: argparse.Namespace) -> Page:
    """The same, from the file of one gateway."""
    import sqlite3
    from datetime import UTC, datetime

    import msgspec

    from app.reliability.ledger import Selection, total
    from app.reliability.stores.sqlite_ledger import FILE, SqliteLedger

    selection = Selection.of(args.since, args.until, datetime.now(UTC).date(), args.tenant, args.model)
    path = args.state_dir / FILE
    if not path.is_file():
        raise NoAnswer(f"There is no {path}: no gateway with this STATE_DIR has counted anything.")
    ledger = SqliteLedger(path, read_only=True)
    try:
        book = ledger.select(selection)
    except sqlite3.Error as error:
        raise NoAnswer(f"{path} cannot be read: {error}.") from None
    finally:
        ledger.close()
    page = {
        "from": selection.first,
        "to": selection.last,
        "scope": "gateway",
        "note": None,
        "rows": [
            {"day": day, "tenant": tenant, "model": model, **msgspec.structs.asdict(book[day, tenant, model])}
            for day, tenant, model in sorted(book)
        ],
        "totals": total(book),
    }
    return msgspec.convert(msgspec.to_builtins(page), Page)


def as_json(page: Page) -> str:
    return json.dumps(page, indent=2)


def as_csv(page: Page) -> str:
    import csv
    import io

    text = io.StringIO()
    lines = csv.DictWriter(text, (*NAMES, *COUNTS), extrasaction="ignore", lineterminator="\n")
    lines.writeheader()
    lines.writerows(page["rows"])
    return text.getvalue().rstrip("\n")


def as_table(page: Page) -> str:
    whose = "all gateways" if page["scope"] == "cluster" else "this gateway"
    title = f"Usage of {whose} from {page['from']} to {page['to']} (UTC)\n"
    return "\n".join((title, *_lines(page))) if page["rows"] else f"{title}\nNone."


def _lines(page: Page) -> Iterator[str]:
    head = [name.removesuffix("_tokens") for name in (*NAMES, *COUNTS)]
    rows = [[row["day"], row["tenant"], row["model"], *_numbers(row)] for row in page["rows"]]
    last = ["total", "", "", *_numbers(page["totals"])]
    yield from table.lines(head, [*rows, last], numbers=range(len(NAMES), len(head)))


def _numbers(counts: Counts) -> list[str]:
    of_all = counts["requests"], counts["prompt_tokens"], counts["completion_tokens"], counts["cached_tokens"]
    return [f"{number:,}" for number in of_all]


SHAPES = {"json": as_json, "csv": as_csv, "table": as_table}
