"""Rows of words under a head, each column as wide as its widest word."""

import json
from collections.abc import Iterator, Sequence

Row = Sequence[str]


def lines(head: Row, rows: Sequence[Row], *, numbers: Sequence[int] = ()) -> Iterator[str]:
    """`numbers`: the columns that stand to the right."""
    shown = [head, *([_word(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [
            cell.rjust(width) if number in numbers else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _word(cell: str) -> str:
    """It stays within its cell, and moves no cursor, whatever it is."""
    return cell if cell.isprintable() else json.dumps(cell)
