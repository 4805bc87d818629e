"""Where the curves of a panel are, and what stands around them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from deploy.grafana.draw.answers import Span

TEXT, DIM, GRID = "#d8d9da", "#8e9096", "#2b2e35"
HEAD, LEGEND, AXIS_X, AXIS_Y = 30, 16, 20, 54
LETTER = 5.6
"""About as wide as a letter of a legend is."""


@dataclass(frozen=True)
class Mark:
    """Something that was done at that time, and that the panels show."""

    at: float
    said: str


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Entry:
    """Of a legend."""

    said: str
    colour: str


@dataclass(frozen=True)
class Frame:
    box: Box
    span: Span
    most: float
    left: int = AXIS_Y
    legend: Sequence[Entry] = ()

    @property
    def x(self) -> int:
        return self.box.x + self.left

    @property
    def y(self) -> int:
        return self.box.y + HEAD

    @property
    def width(self) -> int:
        return self.box.width - self.left - 10

    @property
    def height(self) -> int:
        return self.box.height - HEAD - AXIS_X - 4 - self._rows * LEGEND

    def at(self, when: float) -> float:
        return round(self.x + (when - self.span.start) / (self.span.end - self.span.start) * self.width, 1)

    def up(self, value: float) -> float:
        return round(self.y + self.height * (1 - min(max(value, 0), self.most) / self.most), 1)

    def around(self, scale: Sequence[tuple[float, str]], marks: Sequence[Mark]) -> Iterator[str]:
        for value, name in scale:
            level = self.up(value)
            yield f'<path d="M{self.x} {level}h{self.width}" stroke="{GRID}"/>'
            yield text(self.x - 6, level + 4, name, 10.5, DIM, "end")
        clocks = max(1, self.width // 85)
        for part in range(clocks):
            at = self.span.start + part / clocks * (self.span.end - self.span.start)
            clock = datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S")
            yield text(self.at(at), self.y + self.height + 14, clock, 10.5, DIM)
        for number, mark in enumerate(marks, 1):
            x = self.at(mark.at)
            yield f'<path d="M{x} {self.y}v{self.height}" stroke="#5a5e66" stroke-dasharray="2 3"/>'
            yield text(x + 2, self.y + 8, str(number), 9, "#a0a4ab")
        yield from self._named()

    def _named(self) -> Iterator[str]:
        side = columns(self.legend, self.box)
        for number, entry in enumerate(self.legend):
            x = self.box.x + 10 + number % side * (self.box.width - 20) / side
            y = self.y + self.height + AXIS_X + 12 + number // side * LEGEND
            yield f'<rect x="{x:g}" y="{y - 6}" width="12" height="4" fill="{entry.colour}"/>'
            yield text(x + 17, y, entry.said, 10.5, TEXT)

    @property
    def _rows(self) -> int:
        return -(-len(self.legend) // columns(self.legend, self.box))


def columns(legend: Sequence[Entry], box: Box) -> int:
    """How many of its entries have room side by side."""
    longest = max((len(each.said) for each in legend), default=0)
    return 2 if longest * LETTER + 25 < (box.width - 20) / 2 else 1


def text(x: float, y: float, said: str, size: float, colour: str, anchor: str = "start") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{where}>{escape(said)}</text>'
