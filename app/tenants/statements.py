"""Where in a TOML text each thing stands: `tomllib` reads the values and forgets their lines.

Only for texts that `tomllib` has read without complaint.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

Place = tuple[str | int, ...]
"""As one walks through what `tomllib` made of it: `("tenant", 0, "key", 1, "label")`."""


class Statement(NamedTuple):
    path: Place
    first: int
    last: int
    """Lines, counted from 1; a value may go over several."""
    is_header: bool


_PART = r"""(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_DOTTED = rf"(?P<names>{_PART}(?:[ \t]*\.[ \t]*{_PART})*)"
_HEADER = re.compile(rf"(?P<array>\[?)\[[ \t]*{_DOTTED}[ \t]*\]")
_FIELD = re.compile(rf"{_DOTTED}[ \t]*=")
_EMPTY = re.compile(r"[ \t\r]*(?:#[^\n]*)?(?:\n|\Z)")
_INDENT = re.compile(r"[ \t]*")
_STRINGS = (
    r'"""(?:\\.|[^\\])*?"""' r'"{0,2}',  # quotes may stand right before the closing ones
    r"'''.*?'''" r"'{0,2}",
    r'"(?:\\.|[^"\\])*"',
    r"'[^']*'",
)
_TOKEN = re.compile("|".join((*_STRINGS, r"#[^\n]*", r"[\[{]", r"[\]}]", r"\n", r"""[^"'#\[\]{}\n]+""")), re.DOTALL)


def statements(text: str) -> Iterator[Statement]:
    table: Place = ()
    sizes: dict[Place, int] = {}
    position, line = 0, 1
    while position < len(text):
        if empty := _EMPTY.match(text, position):
            position, line = empty.end(), line + 1
            continue
        found = _INDENT.match(text, position)
        begin = found.end() if found else position
        if header := _HEADER.match(text, begin):
            table = path = _resolved(_names(header), sizes, is_array=bool(header["array"]))
            end = _end_of_line(text, header.end())
        elif field := _FIELD.match(text, begin):
            path = table + _names(field)
            end = _end_of_value(text, field.end())
        else:
            raise ValueError(f"line {line} is no TOML")
        last = line + text.count("\n", position, end)
        yield Statement(path, line, last, is_header=header is not None)
        position, line = end + 1, last + 1


def lines_of(text: str) -> dict[Place, int]:
    """The line on which each thing begins; a table that has no header of its own begins with what is first in it."""
    lines: dict[Place, int] = {}
    for statement in statements(text):
        for length in range(1, len(statement.path) + 1):
            lines.setdefault(statement.path[:length], statement.first)
    return lines


def _names(found: re.Match[str]) -> tuple[str, ...]:
    """The parts of a dotted name, without their quotes and escapes."""
    return tuple(_only_way(tomllib.loads(f"{found['names']} = 0")))


def _only_way(nested: dict[str, object] | object) -> Iterator[str]:
    while isinstance(nested, dict):
        ((name, nested),) = nested.items()
        yield name


def _resolved(names: Iterable[str], sizes: dict[Place, int], *, is_array: bool) -> Place:
    """A header means the newest element of each array on its way, and with double brackets it begins one."""
    path: Place = ()
    *way, last = names
    for name in way:
        path += (name,)
        if path in sizes:
            path += (sizes[path] - 1,)
    path += (last,)
    if is_array:
        sizes[path] = sizes.get(path, 0) + 1
        path += (sizes[path] - 1,)
    return path


def _end_of_line(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _end_of_value(text: str, position: int) -> int:
    depth = 0
    for token in _TOKEN.finditer(text, position):
        match token.group():
            case "[" | "{":
                depth += 1
            case "]" | "}":
                depth -= 1
            case "\n" if depth == 0:
                return token.start()
    return len(text)
