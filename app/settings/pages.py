"""What is said about the settings outside the code: `.env.example` and the page of the documentation."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic.fields import FieldInfo

from app.settings import compose
from app.settings.reading import WITHOUT_EFFECT
from app.settings.tree import branches, demo_model, names_of

WRITTEN_BY = "`make docs` writes this file from `app/settings/`."


def pages() -> dict[str, str]:
    """Each page's place in the checkout, and its text."""
    return {".env.example": env_example(), "docs/configuration.md": configuration()}


def env_example() -> str:
    lines = [
        "# Settings of gllm, each with its default. Copy this file to .env and uncomment what you change.",
        f"# The environment wins over .env, and flags win over both. {WRITTEN_BY}",
    ]
    for title, name, info in _settings():
        if title:
            lines += ["", f"# {title}"]
        lines += ["", *(f"# {line}" for line in wrap(str(info.description), 100))]
        lines.append(_line(name, _default(info)))
    lines += ["", f"# {compose.TITLE}"]
    for name, default, sentence in compose.VARIABLES:
        lines += ["", *(f"# {line}" for line in wrap(sentence, 100)), _line(name, default)]
    return "\n".join(lines) + "\n"


def configuration() -> str:
    lines = [
        "# Configuration",
        "",
        "Flags of `gllm serve` win over the environment, the environment over `.env` in the working directory, `.env`",
        "over the defaults. A value that cannot be stops the start with a sentence that names it. So does a name in",
        "`.env` that is no setting, and one in the environment that is nearly one.",
    ]
    for title, name, info in _settings():
        if title:
            lines += ["", f"## {title}", "", "| Setting | Default | |", "| --- | --- | --- |"]
        lines.append(_row(name, _default(info), info.description))
    lines += [
        "",
        f"## {compose.TITLE}",
        "",
        "docker-compose.yml reads them from the same `.env`; to a gateway they mean nothing.",
        "",
        "| Variable | Default | |",
        "| --- | --- | --- |",
        *(_row(*variable) for variable in compose.VARIABLES),
        "",
        "## Without effect",
        "",
        "They may stand in a `.env` of the past, and are told of at the start:",
        "",
        *(f"- `{name}`: {why}." for name, why in WITHOUT_EFFECT.items()),
        "",
        f"*{WRITTEN_BY}*",
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, default: str) -> str:
    return f"# ({name})" if name.endswith("*") else f"# {name}={default}"


def _row(name: str, default: str, sentence: str | None) -> str:
    return f"| `{name}` | {f'`{default}`' if default else ''} | {sentence} |"


def _settings() -> Iterator[tuple[str, str, FieldInfo]]:
    """In their order; the first of a branch comes with the branch's title."""
    for branch, kind in branches().items():
        title = (kind.__doc__ or "").strip().rstrip(".")
        for name, info in names_of(branch).items():
            yield title, name, info
            title = ""


def _default(info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True, validated_data={})
    match value:
        case None | () | "":
            return ""
        case dict():
            return ""
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return "models/demo" if value == demo_model() else str(value)


def write(checkout: Path) -> None:
    for place, text in pages().items():
        (checkout / place).parent.mkdir(exist_ok=True)
        (checkout / place).write_text(text, encoding="utf-8")
