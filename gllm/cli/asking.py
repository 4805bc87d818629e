"""What commands share that ask a running gateway: which one, with which key, and how it is told if that fails."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gllm.cli.gateway import Gateway

FAILED, MISUSED = 1, 2

HERE = "http://127.0.0.1:8000"

TAIL_SHOWN = 12


class Misused(Exception):
    """The text is a sentence for the person who typed it."""


def add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_argument_group("which gateway")
    place.add_argument("--url", help=f"where it is (GLLM_URL, default: {HERE})")
    place.add_argument("--key", help="an admin's API key (better: GLLM_API_KEY or CLUSTER_SECRET in the environment)")


def ask(args: argparse.Namespace, question: Callable[[Gateway], Coroutine[Any, Any, int]]) -> int:
    """The exit code."""
    import asyncio

    from gllm.cli.gateway import Gateway, NoAnswer

    async def asked() -> int:
        async with Gateway(_url(args.url), key_of(args.key)) as gateway:
            return await question(gateway)

    try:
        return asyncio.run(asked())
    except Misused as error:
        print(f"gllm: {error}", file=sys.stderr)
        return MISUSED
    except NoAnswer as error:
        said = "".join(f"\n  | {line}" for line in error.tail[-TAIL_SHOWN:])
        print(f"gllm: {error}{said}", file=sys.stderr)
        return FAILED


def key_of(given: str | None) -> str | None:
    """What of these there is; a file only where nothing is said, as in a container of docker-compose.yml."""
    known = given or os.environ.get("GLLM_API_KEY") or os.environ.get("CLUSTER_SECRET")
    if known or not (file := os.environ.get("CLUSTER_SECRET_FILE")):
        return known or None
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
