"""From flags, environment and `.env` to one table of names and texts; misspelt names stop here."""

import difflib
import logging
import os
from collections.abc import Collection, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream

from app.settings import compose

log = logging.getLogger("gllm.settings")

WITHOUT_EFFECT = {
    "APP_NAME": "this product has its own name",
    "APP_VERSION": "this product has its own version",
    "WORKERS": "here that is PROCESSES",
}
"""Names that the ancestor had: they may stand in a `.env`, and do nothing; and why."""

SHORTEST_GUESS = 6
"""Below this length (HOST, GPUS) too many innocent names of the environment look alike."""
LIKENESS = 0.87


class BadSetting(Exception):
    """A setting that stops the start. The text is one sentence a problem, for the person who starts the gateway."""


def read(
    known: Collection[str], env: Mapping[str, str] | None, env_file: str | Path | None, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """The value of each known name that is set: a flag's before the environment's before the file's. A name like
    `OTEL_*` is known for a family; its value is the table of those that are set.
    """
    environment = {name.upper(): value for name, value in (os.environ if env is None else env).items()}
    in_file = _in_file(Path(env_file)) if env_file else {}
    for name in in_file:
        if not _is_known(name, known):
            raise BadSetting(f"{env_file} sets {name}, which is not a setting{_hint(name, known)}.")
    for name in environment:
        if not _is_known(name, known) and (meant := _guess(name, known)):
            raise BadSetting(f"The environment sets {name}, which is not a setting; did you mean {meant}?")
    for name in sorted(WITHOUT_EFFECT.keys() & {**in_file, **environment}.keys()):
        log.warning("%s has no effect: %s.", name, WITHOUT_EFFECT[name])
    given = {name.upper(): value for name, value in flags.items() if value is not None}
    if strange := sorted(name for name in given if not _is_setting(name, known)):
        raise BadSetting(f"There is no setting {strange[0]}{_hint(strange[0], known)}.")
    merged = {**in_file, **environment, **given}
    found = {name: value for name, value in merged.items() if value != ""}
    return {name: found[name] for name in known if name in found} | _families(known, found)


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


def secret_in(file: Path, named: str) -> str:
    """What such a file holds, without the end of its line. `named` is how the reader was told of it."""
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{named} {file} cannot be read: {getattr(error, 'strerror', 'not text')}.") from None
    if not secret:
        raise BadSetting(f"{named} {file} is empty.")
    return secret


def _is_known(name: str, known: Collection[str]) -> bool:
    return name in WITHOUT_EFFECT or _is_setting(name, (*known, *compose.NAMES))


def _is_setting(name: str, known: Collection[str]) -> bool:
    return name in known or any(_belongs(name, each) for each in known)


def _families(known: Collection[str], found: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What stands under a name like `OTEL_*`: all that begin so, as texts."""
    members = {each: {name: str(found[name]) for name in found if _belongs(name, each)} for each in known}
    return {family: texts for family, texts in members.items() if texts}


def _belongs(name: str, family: str) -> bool:
    return family.endswith("*") and name.startswith(family[:-1])


def _guess(name: str, known: Collection[str]) -> str | None:
    if len(name) < SHORTEST_GUESS:
        return None
    candidates = [each for each in (*known, *WITHOUT_EFFECT, *compose.NAMES) if len(each) >= SHORTEST_GUESS]
    return next(iter(difflib.get_close_matches(name, candidates, n=1, cutoff=LIKENESS)), None)


def _hint(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, (*known, *WITHOUT_EFFECT, *compose.NAMES), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""
