"""The `gllm` command. One file a command; what a command needs is imported when it runs, not when help is shown."""

import argparse
import sys
from collections.abc import Sequence

import gllm
from gllm.cli import keys, serve, usage, worker

COMMANDS = (serve, worker, keys, usage)


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.run is None:
        print("Hello from GLLM! 🚀\n")
        parser.print_help()
        return 0
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:  # before a command has taken Ctrl+C into its own hands
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="gllm", description="An observable gateway for language models you run yourself.")
    parser.add_argument("--version", action="version", version=f"gllm {gllm.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """A mistake is answered with one line of usage and one sentence, and exit code 2."""

    def error(self, message: str) -> "None":  # type: ignore[override]  # it never returns, as `exit` does not
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: {message}. Try '{self.prog} --help'.\n")
