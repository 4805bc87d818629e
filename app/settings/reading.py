"""From flags, environment and `.env` to one table of names and texts; misspelt names stop here."""

import difflib
import logging
import os
from collections.abc import Collection, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream

log = logging.getLogger("gllm.settings")

WITHOUT_EFFECT = frozenset(
    {
        "APP_NAME",
        "APP_VERSION",
        "ENABLE_TRACING",
        "METRICS_PORT",
        "WORKERS",
    }
)
"""Names that the ancestor had, or that this product will have: they may stand in a `.env`, and do nothing yet."""
WITHOUT_EFFECT_PREFIX = "OTEL_"

SHORTEST_GUESS = 6
"""Below this length (HOST, GPUS) too many innocent names of the environment look alike."""
LIKENESS = 0.87


class BadSetting(Exception):
    """A setting that stops the start. The text is one sentence a problem, for the person who starts the gateway."""


def read(
    known: Collection[str], env: Mapping[str, str] | None, env_file: str | Path | None, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """The value of each known name that is set: a flag's before the environment's before the file's."""
    environment = {name.upper(): value for name, value in (os.environ if env is None else env).items()}
    in_file = _in_file(Path(env_file)) if env_file else {}
    for name in in_file:
        if name not in known and not _without_effect(name):
            raise BadSetting(f"{env_file} sets {name}, which is not a setting{_hint(name, known)}.")
    for name in environment:
        if name not in known and not _without_effect(name) and (meant := _guess(name, known)):
            raise BadSetting(f"The environment sets {name}, which is not a setting; did you mean {meant}?")
    idle = sorted(name for name in {**in_file, **environment} if _without_effect(name))
    if idle:
        log.warning("%s: no effect yet in this version.", ", ".join(idle))
    given = {name.upper(): value for name, value in flags.items() if value is not None}
    if strange := sorted(given.keys() - set(known)):
        raise BadSetting(f"There is no setting {strange[0]}{_hint(strange[0], known)}.")
    merged = {**in_file, **environment, **given}
    return {name: merged[name] for name in known if name in merged and merged[name] != ""}


def _in_file(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}."
        ) from error
    values: dict[str, str] = {}
    for line in parse_stream(StringIO(text)):
        if line.error or (line.key is not None and line.value is None):
            raise BadSetting(f"{path}, line {line.original.line}, sets nothing: write NAME=value.")
        if line.key is not None:
            values[line.key.upper()] = line.value or ""
    return values


def _without_effect(name: str) -> bool:
    return name in WITHOUT_EFFECT or name.startswith(WITHOUT_EFFECT_PREFIX)


def _guess(name: str, known: Collection[str]) -> str | None:
    if len(name) < SHORTEST_GUESS:
        return None
    candidates = [each for each in (*known, *WITHOUT_EFFECT) if len(each) >= SHORTEST_GUESS]
    return next(iter(difflib.get_close_matches(name, candidates, n=1, cutoff=LIKENESS)), None)


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, (*known, *WITHOUT_EFFECT), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
