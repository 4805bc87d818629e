"""All that a run has found, and the file that keeps it."""

import statistics
from pathlib import Path
from typing import Any

import msgspec

from bench.cost.measures import Figures

GLLM, DIRECT = "gllm", "direct"

Repeats = list[Figures]
"""One for each repeat."""


class Results(msgspec.Struct):
    command: str
    facts: dict[str, str | int]
    lengths: dict[str, Any]
    versions: dict[str, str] = {}
    abouts: dict[str, str] = {}
    gateways: dict[str, Repeats] = {}
    """gllm, its peers, and `direct`: nobody between the load and the engine."""
    policies: dict[str, Repeats] = {}
    scale: dict[str, dict[str, Repeats]] = {}
    """By what grows, and how large it is."""
    gateway: Figures = {}
    """What is measured once, and of gllm only."""
    took_s: float = 0

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    def failed(self) -> int:
        """Requests that gllm did not answer as it should. Those of its peers are in the table, and are theirs."""
        repeats = [self.gateways.get(GLLM, []), *self.policies.values()]
        repeats += [each for sizes in self.scale.values() for each in sizes.values()]
        figures = [figures for each in repeats for figures in each]
        return sum(int(value) for each in figures for name, value in each.items() if name.endswith("_failed"))


def load(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)


def median(repeats: Repeats, name: str) -> float | None:
    values = [figures[name] for figures in repeats if name in figures]
    return statistics.median(values) if values else None


def ratio(repeats: Repeats, others: Repeats, name: str) -> float | None:
    """Of one to the other in each repeat; the median of these. What slowed a repeat slowed both."""
    pairs = [(mine[name], theirs[name]) for mine, theirs in zip(repeats, others, strict=False) if name in mine]
    each = [mine / theirs for mine, theirs in pairs if theirs]
    return statistics.median(each) if each else None


def extra(repeats: Repeats, others: Repeats, name: str) -> float | None:
    """How much more than the other's. By ratios, as what slows a turn slows both by as much."""
    by, of = ratio(repeats, others, name), median(others, name)
    return None if by is None or of is None else (by - 1) * of


def middle(repeats: Repeats, name: str) -> str:
    """Between which the middle half of them lies."""
    values = [figures[name] for figures in repeats if name in figures]
    if len(values) < 2:
        return "-"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{low:.3g}-{high:.3g}"


def spread(repeats: Repeats, name: str) -> str:
    """From the least to the most: how far to believe a median."""
    values = [figures[name] for figures in repeats if name in figures]
    return f"{min(values):.3g}-{max(values):.3g}" if values else "-"
