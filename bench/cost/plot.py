"""What each costs, as bars (SVG). The scale is logarithmic: the least and the most are a thousandfold apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.sax.saxutils import escape

from bench.cost.results import DIRECT, GLLM, Results, median

WIDTH, ROW, TOP, NAMES, SIDE = 900, 26, 64, 130, 70
GROUND, TEXT, DIM, GRID = "#ffffff", "#1f2328", "#59636e", "#d8dee4"
OURS, OTHERS = "#2f6feb", "#9aa4b2"

PANELS = (
    ("us_per_request", "CPU µs per request, 64 at once"),
    ("paced_us_per_token", "CPU µs per token, paced streams"),
)


@dataclass(frozen=True)
class Bar:
    name: str
    value: float


@dataclass(frozen=True)
class Panel:
    title: str
    bars: Sequence[Bar]

    @property
    def height(self) -> int:
        return TOP + ROW * len(self.bars) + 30

    def decades(self) -> range:
        values = [bar.value for bar in self.bars]
        low = floor(log10(min(values)))
        return range(low, max(low + 1, ceil(log10(max(values)))) + 1)

    def shapes(self, top: int) -> Iterator[str]:
        decades = self.decades()
        wide = WIDTH - NAMES - SIDE

        def at(value: float) -> float:
            part = (log10(value) - decades[0]) / (decades[-1] - decades[0])
            return round(NAMES + part * wide, 1)

        bottom = top + TOP + ROW * len(self.bars)
        yield _text(NAMES, top + 26, self.title, 15, TEXT)
        for power in decades:
            yield f'<path d="M{at(10.0**power)} {top + TOP - 12}V{bottom}" stroke="{GRID}"/>'
            yield _text(at(10.0**power), top + TOP - 16, f"{10.0**power:,g}", 11, DIM, "middle")
        for number, bar in enumerate(self.bars):
            y = top + TOP + ROW * number
            colour = OURS if bar.name == GLLM else OTHERS
            yield _text(NAMES - 8, y + 14, bar.name, 13, TEXT, "end")
            yield f'<rect x="{NAMES}" y="{y}" width="{at(bar.value) - NAMES:g}" height="18" rx="2" fill="{colour}"/>'
            yield _text(
                at(bar.value) + 6, y + 14, f"{bar.value:,.3g}" if bar.value < 1_000 else f"{bar.value:,.0f}", 12, DIM
            )


def picture(results: Results) -> str:
    panels = [panel for name, title in PANELS if (panel := _panel(results, name, title)).bars]
    shapes: list[str] = []
    top = 0
    for panel in panels:
        shapes += panel.shapes(top)
        top += panel.height
    facts = results.facts
    caption = f"{facts['date']}, commit {facts['commit']}, {facts['cpu']}, one core for each gateway; logarithmic"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 30}" width="{WIDTH}" height="{top + 30}"'
    )
    body = "\n".join([f'<rect width="{WIDTH}" height="{top + 30}" fill="{GROUND}"/>', *shapes])
    return (
        f'{head} font-family="Inter, Helvetica, Arial, sans-serif">\n'
        f"<title>What gateways cost</title>\n{body}\n{_text(NAMES, top + 12, caption, 11, DIM)}\n</svg>\n"
    )


def _panel(results: Results, name: str, title: str) -> Panel:
    values = {each: median(repeats, name) for each, repeats in results.gateways.items() if each != DIRECT}
    bars = [Bar(each, value) for each, value in values.items() if value]
    return Panel(title, sorted(bars, key=lambda bar: bar.value))


def _text(x: float, y: float, said: str, size: int, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(said)}</text>'
