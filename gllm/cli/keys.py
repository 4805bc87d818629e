"""`gllm keys`: makes, lists and revokes the keys of tenants. A running gateway sees each change by itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.tenants.roster import Key, Roster

FAILED, USAGE = 1, 2

TENANT_FLAGS: dict[str, dict[str, Any]] = {
    "--models": {
        "type": lambda text: text.split(","),
        "metavar": "MODEL,...",
        "help": "those it may use; not given: all",
    },
    "--weight": {"type": float, "metavar": "W", "help": "its share among those that wait; not given: 1"},
    "--priority": {
        "choices": ("interactive", "normal", "batch"),
        "help": "the highest for its calls; not given: normal",
    },
    "--requests-per-minute": {"type": int, "metavar": "N", "help": "not given: no limit"},
    "--tokens-per-minute": {"type": int, "metavar": "N", "help": "prompts and answers together; not given: no limit"},
    "--concurrent": {"type": int, "metavar": "N", "help": "requests at the same time; not given: no limit"},
    "--admin": {"action": "store_const", "const": True, "help": "it may read the metrics, and use /admin"},
}
"""For a tenant that is made along with its first key."""


class Refused(Exception):
    """The text is a sentence for the person at the terminal."""


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "keys",
        help="make, list and revoke keys of tenants",
        description="Make, list and revoke keys of tenants. A running gateway sees each change by itself.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    new = _action(actions, "new", _new, "make a key, and the tenant if there is none of this name")
    new.add_argument("name", metavar="NAME", help="the tenant's name")
    new.add_argument("--label", help="what the key is for, as it is shown in lists")
    new.add_argument("--expires", type=_day_to_come, metavar="DATE", help="first day (UTC) without it: 2030-01-31")
    options = new.add_argument_group("for a new tenant")
    for flag, settings in TENANT_FLAGS.items():
        options.add_argument(flag, **settings)
    _action(actions, "list", _list, "list tenants and keys; a key is shown by its id only")
    revoke = _action(actions, "revoke", _revoke, "take a key away, by its id in the list")
    revoke.add_argument("key_id", metavar="ID")


def _action(
    actions: argparse._SubParsersAction[Any], name: str, act: Callable[[argparse.Namespace, Path], None], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("--file", type=Path, metavar="FILE", help="the file of tenants (TENANTS_FILE)")
    parser.set_defaults(run=run, act=act)
    return parser


def run(args: argparse.Namespace) -> int:
    from app.settings import BadSetting
    from app.tenants.edits import CannotEdit
    from app.tenants.file import BadTenants

    try:
        return _act(args, args.file or _file_of_settings())
    except (Refused, BadSetting, BadTenants, CannotEdit) as error:
        print(f"gllm: {error}", file=sys.stderr)
        return USAGE


def _act(args: argparse.Namespace, path: Path) -> int:
    try:
        args.act(args, path)
    except OSError as error:
        print(f"gllm: {path} cannot be changed: {error.strerror}.", file=sys.stderr)
        return FAILED
    return 0


def _file_of_settings() -> Path:
    from app.settings import Settings

    path = Settings.load().listen.tenants_file
    if path is None:
        raise Refused("Which file? Give --file tenants.toml, or set TENANTS_FILE.")
    return path


# --- new ----------------------------------------------------------------------------------------------------------


def _new(args: argparse.Namespace, path: Path) -> None:
    from app.tenants.draft import drafting
    from app.tenants.edits import add_key, add_tenant
    from app.tenants.file import BadTenants, parse
    from app.tenants.keys import digest_of, id_of, mint

    key = mint()
    digest = digest_of(key.encode())
    facts = {"sha256": digest.hex(), "label": args.label, "created": _today(), "expires": args.expires}
    with drafting(path) as draft:
        is_new = args.name not in [tenant.name for tenant in parse(draft.text, path).tenants]
        fields = _tenant_fields(args)
        if fields and not is_new:
            raise Refused(f"Tenant '{args.name}' exists: change what it may have in {path}.")
        try:
            text = add_tenant(draft.text, {"name": args.name, **fields}) if is_new else draft.text
            draft.save(add_key(text, args.name, _given(facts)))
        except BadTenants as error:
            raise Refused(error.problem) from None  # the line it names was never written
    whose = f"new tenant '{args.name}'" if is_new else f"tenant '{args.name}'"
    print(f"Key {id_of(digest)} of {whose}; {path} holds its hash only, so keep it now:", file=sys.stderr)
    print(key)


def _tenant_fields(args: argparse.Namespace) -> dict[str, Any]:
    names = [flag.removeprefix("--").replace("-", "_") for flag in TENANT_FLAGS]
    return _given({name: getattr(args, name) for name in names})


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _day_to_come(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("give a date such as 2030-01-31") from None
    if day <= _today():
        raise argparse.ArgumentTypeError("the key would have expired already")
    return day


# --- list and revoke ----------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace, path: Path) -> None:
    from app.tenants.file import parse, read_text
    from gllm.cli import table

    head = "ID", "TENANT", "CREATED", "EXPIRES", "LABEL"
    print("\n".join(table.lines(head, list(_rows(parse(read_text(path), path))))))


def _rows(roster: Roster) -> Iterator[tuple[str, ...]]:
    from app.tenants.keys import id_of

    for tenant in roster.tenants:
        keys = [key for key in roster.keys if key.tenant is tenant]
        for key in keys:
            yield id_of(key.digest), tenant.name, _day(key.created), _expiry(key), key.label
        if not keys:
            yield "no key", tenant.name, "", "", ""


def _day(day: date | None) -> str:
    return "" if day is None else day.isoformat()


def _expiry(key: Key) -> str:
    return f"{_day(key.expires)} (past)" if key.expired(_today()) else _day(key.expires)


def _revoke(args: argparse.Namespace, path: Path) -> None:
    from app.tenants.draft import drafting
    from app.tenants.edits import remove_key
    from app.tenants.file import parse
    from app.tenants.keys import id_of

    with drafting(path) as draft:
        key = _meant(parse(draft.text, path), args.key_id, path)
        draft.save(remove_key(draft.text, key.digest))
    print(f"Key {id_of(key.digest)} of tenant '{key.tenant.name}' is revoked.")


def _meant(roster: Roster, given: str, path: Path) -> Key:
    """By its id, or by itself: who has found one of ours in public has nothing else."""
    from app.tenants.keys import ID_LENGTH, PREFIX, digest_of

    wanted = digest_of(given.encode()).hex() if given.startswith(PREFIX) else given.lower()
    found = [key for key in roster.keys if key.digest.hex().startswith(wanted)] if len(wanted) >= ID_LENGTH else []
    if len(found) != 1:
        raise Refused(f"There is no such key in {path}: 'gllm keys list' shows their ids.")
    return found[0]


def _today() -> date:
    return datetime.now(UTC).date()
