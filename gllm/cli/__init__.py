"""The `gllm` command. One file a command; what a command needs is imported when it runs, not when help is shown."""

import argparse
import sys
from collections.abc import Sequence

import gllm
from gllm.cli import (
    adapters,
    drain,
    engine_logs,
    explain,
    keys,
    load,
    release,
    serve,
    start_balancer,
    start_cluster,
    status,
    usage,
    worker,
)

COMMANDS = (
    serve,
    start_cluster,
    start_balancer,
    worker,
    status,
    load,
    release,
    drain,
    engine_logs,
    adapters,
    explain,
    keys,
    usage,
)

APART = "--"


def main(argv: Sequence[str] | None = None) -> int:
    ours, engines = _parted(sys.argv[1:] if argv is None else argv)
    parser = command_line()
    args = parser.parse_args(ours)
    strange = [word for word in (*ours, *engines) if not _is_text(word)]
    if strange and args.run is not keys.run:  # which says more of what a label may be
        parser.error(f"{strange[0]!r} is not UTF-8 text")
    if engines:
        if not hasattr(args, "engine_args"):
            parser.error(f"nothing is expected after {APART}")
        args.engine_args = engines
    if args.run is None:
        print("Hello from GLLM! 🚀\n")
        parser.print_help()
        return 0
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:  # before a command has taken Ctrl+C into its own hands
        return 130
    return code


def _parted(words: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """What comes after the first `--` is an engine's, whatever it looks like; argparse would mix it with our own."""
    if APART not in words:
        return list(words), ()
    at = list(words).index(APART)
    return list(words[:at]), tuple(words[at + 1 :])


def _is_text(word: str) -> bool:
    """Names and paths travel as JSON, which can carry nothing else."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def command_line() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gllm",
        description="An observable gateway for language models you run yourself.",
        formatter_class=_Wide,
    )
    parser.add_argument("--version", action="version", version=f"gllm {gllm.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


class _Wide(argparse.HelpFormatter):
    """The names of commands and what they do stand side by side."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)
        self._action_max_length = 20  # argparse forgets that commands are indented twice


class _Parser(argparse.ArgumentParser):
    """A mistake is answered with one line of usage and one sentence, and exit code 2."""

    def error(self, message: str) -> "None":  # type: ignore[override]  # it never returns, as `exit` does not
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {message}. Try '{self.prog} --help'.\n")
