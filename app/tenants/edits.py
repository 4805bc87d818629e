"""Changing a tenants file as a person would: everything else in it, comments too, stays as it is."""

import json
from collections.abc import Mapping
from datetime import date

from app.tenants.file import parse
from app.tenants.statements import Place, Statement, statements

Value = str | int | float | date | list[str]


class CannotEdit(Exception):
    """The text is a sentence for the person who asked for the change."""


def add_tenant(text: str, fields: Mapping[str, Value]) -> str:
    return _inserted(text, None, _block("[[tenant]]", fields))


def add_key(text: str, tenant: str, fields: Mapping[str, Value]) -> str:
    """After all that is said of the tenant; it must be there."""
    number = [each.name for each in parse(text).tenants].index(tenant)
    place: Place = ("tenant", number)
    own = [each for each in statements(text) if each.path[:2] == place]
    if not own or not own[0].is_header:
        raise CannotEdit(f"Tenant '{tenant}' is not written as [[tenant]]: add the key by hand.")
    return _inserted(text, own[-1].last, _block("[[tenant.key]]", fields))


def remove_key(text: str, digest: bytes) -> str:
    """What is said of this key, and no line more; it must be there."""
    found = list(statements(text))
    header = _header_of(found, _place_of(text, digest))
    own = [each for each in found if each.path[: len(header.path)] == header.path]
    lines = text.split("\n")
    before, after = lines[: header.first - 1], lines[own[-1].last :]
    if before and not before[-1].strip() and not (after and after[0].strip()):
        before.pop()  # or each removal would leave a blank line more
    return "\n".join(before + after)


def _place_of(text: str, digest: bytes) -> Place:
    """The roster's keys stand in the file's order."""
    roster = parse(text)
    key = next(key for key in roster.keys if key.digest == digest)
    siblings = [each.digest for each in roster.keys if each.tenant is key.tenant]
    number = next(number for number, tenant in enumerate(roster.tenants) if tenant is key.tenant)
    return ("tenant", number, "key", siblings.index(digest))


def _header_of(found: list[Statement], place: Place) -> Statement:
    header = next((each for each in found if each.path == place), None)
    if header is None:
        raise CannotEdit("This key is not written as [[tenant.key]]: remove it by hand.")
    return header


def _inserted(text: str, after: int | None, block: list[str]) -> str:
    """Below so many lines or at the end, with a blank one in between, in the file's own line ends."""
    end = "\r\n" if "\r\n" in text else "\n"
    if text and not text.endswith("\n"):
        text += end
    lines = [f"{line}\n" for line in text.split("\n")[:-1]]
    above = lines[:after]
    blank = [end] if above and above[-1].strip() else []
    return "".join((*above, *blank, *(line + end for line in block), *lines[len(above) :]))


def _block(header: str, fields: Mapping[str, Value]) -> list[str]:
    return [header, *(f"{name} = {_written(value)}" for name, value in fields.items())]


def _written(value: Value) -> str:
    match value:
        case date():
            return value.isoformat()
        case list():
            return f"[{', '.join(_written(each) for each in value)}]"
    return json.dumps(value, ensure_ascii=False)
