"""Objectives to be met by a run: the service's own (deploy/slo.py), or others."""

import re
from dataclasses import dataclass

USUAL = "ttft=2.5@99,tpot=0.1@99,availability=99.5"
"""Those of deploy/slo.py, which is not at hand in a container; a test holds them equal."""

_TIME = re.compile(r"(ttft|tpot)=([\d.]+)@([\d.]+)")
_SHARE = re.compile(r"(availability)=()([\d.]+)")


@dataclass(frozen=True)
class Target:
    name: str
    percent: float
    """Of calls that must meet it."""
    seconds: float | None = None


def targets(said: str) -> tuple[Target, ...]:
    return tuple(_target(each) for each in filter(None, said.replace(" ", "").split(",")))


def _target(said: str) -> Target:
    match = _TIME.fullmatch(said) or _SHARE.fullmatch(said)
    if match is None:
        raise ValueError(f"an objective is ttft|tpot=SECONDS@PERCENT or availability=PERCENT; not {said!r}")
    name, seconds, percent = match.groups()
    return Target(name, float(percent), float(seconds) if seconds else None)
