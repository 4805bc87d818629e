"""What can be chosen, on the command line, by environment, or in the web page. Keys are the page's only secrets."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from crowd.levels import LEVELS
from crowd.targets import USUAL, Target, targets


class Parser(Protocol):
    """Locust's, which knows more words than argparse's."""

    def add_argument(self, *names: str, **said: Any) -> Any: ...


class Environment(Protocol):
    """Locust's, of which this is all that is needed here."""

    @property
    def parsed_options(self) -> argparse.Namespace | None: ...


KINDS = ("chat", "stream", "retry", "hangup", "burst")
EVEN_CROWD = "chat=3,stream=5,retry=2,hangup=2,burst=1"


@dataclass(frozen=True)
class Key:
    tenant: str
    secret: str = ""


@dataclass(frozen=True)
class Settings:
    model: str
    keys: tuple[Key, ...]
    weights: dict[str, int]
    shape: str
    open: bool
    max_tokens: int
    think_s: float
    deadline_s: float
    burst: int
    slo: tuple[Target, ...]
    late_ms: float
    alone: bool
    admin_key: str

    @classmethod
    def of(cls, environment: Environment) -> "Settings":
        """As they are now: the web page may change them between two runs."""
        options = environment.parsed_options
        assert options is not None
        return cls(
            model=options.model,
            keys=keys(options.keys),
            weights=weights(options.crowd),
            shape=options.shape,
            open=options.open,
            max_tokens=options.max_tokens,
            think_s=options.think,
            deadline_s=options.deadline,
            burst=options.burst,
            slo=targets(options.slo),
            late_ms=options.late,
            alone=options.alone,
            admin_key=options.admin_key,
        )


def weights(said: str) -> dict[str, int]:
    """`chat=3,stream=5`: who is not named does not come."""
    found: dict[str, int] = {}
    for each in filter(None, said.replace(" ", "").split(",")):
        kind, _, weight = each.partition("=")
        if kind not in KINDS or not weight.isdecimal():
            raise ValueError(f"a crowd is KIND=WEIGHT,..., with the kinds {', '.join(KINDS)}; not {each!r}")
        found[kind] = int(weight)
    if not any(found.values()):
        raise ValueError("a crowd of nobody")
    return {kind: weight for kind, weight in found.items() if weight}


def keys(said: str) -> tuple[Key, ...]:
    """`KEY,KEY`, `TENANT=KEY,...`, or `@FILE` with one in a line. None: one person without a key."""
    if said.startswith("@"):
        try:
            said = ",".join(Path(said[1:]).read_text().split())
        except OSError as error:
            raise ValueError(f"{said[1:]}: {error.strerror}") from None
    found = [each.rpartition("=") for each in filter(None, said.replace(" ", "").split(","))]
    return tuple(Key(tenant or f"key {turn}", key) for turn, (tenant, _, key) in enumerate(found, 1)) or (Key(""),)


def declare(parser: Parser) -> None:
    """Each can be said by LOCUST_NAME in the environment, too."""

    def add(name: str, default: object, said: str, **more: Any) -> None:
        env = "LOCUST_" + name[2:].replace("-", "_").upper()
        parser.add_argument(name, **{"env_var": env, "default": default, "help": said, **more})

    add(
        "--shape",
        "steady",
        "--users; a spike of ten times as many; steps up to three times as many",
        choices=list(LEVELS),
    )
    add("--crowd", EVEN_CROWD, "who comes, KIND=WEIGHT,...", type=checked(weights))
    add("--open", False, "a user is a source of one new caller a second, however slow answers are", action="store_true")
    add("--keys", "", "dealt in turn: KEY,... or TENANT=KEY,... or @FILE of these", type=checked(keys), is_secret=True)
    add("--model", "", "needed where more than one is served")
    add("--max-tokens", 64, "that an answer may have", type=int)
    add("--think", 1.0, "seconds for which a person reads an answer, in the mean", type=float)
    add("--deadline", 60.0, "seconds that the gateway is given for an answer", type=float)
    add("--burst", 10, "calls that a burst sends at once", type=int)
    add(
        "--slo",
        "",
        f"what must hold, else the exit code is 1; without a value {USUAL}",
        type=checked(targets),
        nargs="?",
        const=USUAL,
    )
    add("--late", 25.0, "ms by which this process may be late (p99), before its own figures are doubted", type=float)
    add("--alone", False, "nobody else uses the gateway: all work must end, and the bill be right", action="store_true")
    add("--admin-key", "", "for --alone, where the gateway asks for keys", env_var="GLLM_API_KEY", is_secret=True)


def checked(read: Callable[[str], object]) -> Callable[[str], str]:
    """The text as it is, if it can be read: it is text that the web page shows and workers are told."""

    def check(said: str) -> str:
        try:
            read(said)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return said

    return check
