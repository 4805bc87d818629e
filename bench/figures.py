"""Figures: percentiles and tables."""

import math
from collections.abc import Sequence

Cell = str | int | float | None
Row = dict[str, Cell]


def percentile(values: Sequence[float], rank: float) -> float:
    """The smallest value that is not below `rank` percent of all: one that was really seen. `values` are sorted."""
    return values[max(0, math.ceil(len(values) * rank / 100) - 1)] if values else math.nan


def of(values: Sequence[float], rank: float) -> float | None:
    """In ms, of values in s; `None` where there are none."""
    return round(percentile(sorted(values), rank) * 1e3, 1) if values else None


def table(rows: Sequence[Row]) -> str:
    """In Markdown, as the documents have it, and aligned, as people read it."""
    names = list(rows[0])
    lines = [names, *([_written(row.get(name)) for name in names] for row in rows)]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(names))]
    written = ["| " + " | ".join(_set(line, widths)) + " |" for line in lines]
    rule = "| " + " | ".join("-" * (width - 1) + ":" if index else "-" * width for index, width in enumerate(widths))
    return "\n".join([written[0], f"{rule} |", *written[1:]])


def _set(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]


def _written(cell: Cell) -> str:
    match cell:
        case None:
            return "-"
        case float():
            return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.1f}"
    return str(cell)
