"""`python -m gllm.cli.pages` in a checkout writes the page about the command line anew: the help of all commands."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from gllm.cli import command_line

PLACE = "docs/cli.md"
WRITTEN_BY = "`make docs` writes this file from `gllm/cli/`."


def page() -> str:
    """What argparse knows, in our own shape: its own differs from one Python to the next."""
    lines = [
        "# Command line",
        "",
        "`gllm COMMAND --help` says the same. Whatever runs a gateway or a worker also reads its settings:",
        "[configuration](configuration.md), [clusters](cluster/commands.md).",
        "",
        "Exit codes: 0 done, 1 failed, 2 misunderstood or impossible, 130 interrupted.",
    ]
    for parser in _commands(command_line()):
        lines += _section(parser)
    return "\n".join([*lines, "", f"*{WRITTEN_BY}*"]) + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Those that do something, in their order."""
    below = [each for action in parser._actions if (each := _choices(action))]
    if not below:
        yield parser
    for choices in below:
        for choice in choices.values():
            yield from _commands(choice)


def _choices(action: argparse.Action) -> dict[str, argparse.ArgumentParser]:
    return dict(action.choices) if isinstance(action, argparse._SubParsersAction) else {}


def _section(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from ("", f"## {parser.prog}", "", parser.description or "", "", "```text", _usage(parser), "```")
    shown = [action for action in parser._actions if action.help and action.help != argparse.SUPPRESS]
    rows = [action for action in shown if not isinstance(action, argparse._HelpAction)]
    if rows:
        yield from ("", "| | |", "| --- | --- |")
    for action in rows:
        yield f"| {_spelt(action)} | {_told(action)} |"
    if parser.epilog:
        yield from ("", parser.epilog)


def _usage(parser: argparse.ArgumentParser) -> str:
    if parser.usage:
        return parser.usage
    return " ".join((parser.prog, *map(_value, _positionals(parser)), "[options]"))


def _positionals(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [each for each in parser._actions if not each.option_strings and each.help != argparse.SUPPRESS]


def _spelt(action: argparse.Action) -> str:
    value = _value(action)
    if not action.option_strings:
        return f"`{value}`"
    names = sorted(action.option_strings, key=len)
    return ", ".join(f"`{name} {value}`" if value and name is names[-1] else f"`{name}`" for name in names)


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    word = "/".join(action.choices) if action.choices else action.metavar or action.dest.upper()
    return {"+": f"{word} ...", "*": f"[{word} ...]"}.get(str(action.nargs), str(word))


def _told(action: argparse.Action) -> str:
    text = (action.help or "") % {"default": action.default}
    return f"**required**; {text}" if action.required and action.option_strings else text


def write(checkout: Path) -> None:
    (checkout / PLACE).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path.cwd())
