"""What commands share that ask a running gateway: which one, with which key, and how it is told if that fails."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gllm.cli.gateway import Gateway

FAILED, MISUSED, UNHEARD = 1, 2, 141

HERE = "http://127.0.0.1:8000"

TAIL_SHOWN = 12


class Misused(Exception):
    """The text is a sentence for the person who typed it."""


def add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("which gateway")
    place.add_argument("--url", help=f"where it is (GLLM_URL, default: {HERE})")
    place.add_argument("--key", help="an admin's API key (better: GLLM_API_KEY or CLUSTER_SECRET in the environment)")


def seconds(text: str) -> float:
    """As argparse takes it: a time that the wire can carry."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds from 0 on, not {text!r}")
    return value


def ask(args: argparse.Namespace, question: Callable[[Gateway], Coroutine[Any, Any, int]]) -> int:
    """The exit code."""
    import asyncio

    from gllm.cli.gateway import Gateway, NoAnswer

    async def asked() -> int:
        async with Gateway(_url(args.url), key_of(args.key)) as gateway:
            return await question(gateway)

    try:
        code = asyncio.run(asked())
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough; and Python must not try once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNHEARD
    except Misused as error:
        print(f"gllm: {error}", file=sys.stderr)
        return MISUSED
    except NoAnswer as error:
        said = "".join(f"\n  | {line}" for line in error.tail[-TAIL_SHOWN:])
        print(f"gllm: {error}{said}", file=sys.stderr)
        return FAILED


def key_of(given: str | None) -> str | None:
    """What of these there is; a file only where nothing is said, as in a container of docker-compose.yml."""
    known = (given or os.environ.get("GLLM_API_KEY") or os.environ.get("CLUSTER_SECRET") or _key_in_file()).strip()
    if not (known.isascii() and known.isprintable()):
        raise Misused("The key (--key, GLLM_API_KEY, CLUSTER_SECRET) must be one line of ASCII characters.")
    return known or None


def _key_in_file() -> str:
    file = os.environ.get("CLUSTER_SECRET_FILE")
    if not file:
        return ""
    from app.settings.reading import BadSetting, secret_in

    try:
        return secret_in(Path(file), "CLUSTER_SECRET_FILE")
    except BadSetting as error:
        raise Misused(str(error)) from None


def _url(given: str | None) -> str:
    from app.settings.values import base_url

    text = given or os.environ.get("GLLM_URL") or HERE
    try:
        return base_url(text)
    except ValueError:
        raise Misused(f"{'--url' if given else 'GLLM_URL'} must be a URL such as {HERE}, not {text!r}.") from None
