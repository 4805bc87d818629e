"""A dashboard as a picture (SVG): its own panels, in their own places, with what a Prometheus answered."""

from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

from deploy.grafana.draw import charts
from deploy.grafana.draw.answers import Answer, Span
from deploy.grafana.draw.frame import DIM, TEXT, Box, Mark, text
from deploy.grafana.panel import WIDTH, Board, Panel, placed

CELL, UNIT = 56, 32
"""A column and a unit of height of the grid, in pixels."""
GAP, PAD, TOP = 8, 12, 44
GROUND, PAPER = "#111217", "#181b1f"


def picture(board: Board, answers: Mapping[str, Answer], span: Span, marks: Sequence[Mark], caption: str) -> str:
    name = f"gllm: {board.title}"
    shapes = [text(PAD, 28, name, 18, TEXT), text(PAD + 250, 28, board.text, 13, DIM)]
    bottom = 0
    for thing, place in placed(board):
        box = Box(PAD + place["x"] * CELL, TOP + place["y"] * UNIT, place["w"] * CELL - GAP, place["h"] * UNIT - GAP)
        bottom = max(bottom, box.y + box.height)
        if isinstance(thing, Panel):
            shapes += _panel(thing, answers[thing.title], span, marks, box)
        else:
            shapes.append(text(box.x, box.y + 18, thing.title, 14, TEXT))
    said = "    ".join(f"{number}: {mark.said}" for number, mark in enumerate(marks, 1))
    shapes += [text(PAD, bottom + 26, said, 12, TEXT), text(PAD, bottom + 46, caption, 12, DIM)]
    wide, tall = 2 * PAD + WIDTH * CELL - GAP, bottom + 60
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}"'
    return "\n".join(
        [
            f'{head} font-family="Inter, Helvetica, Arial, sans-serif" xml:space="preserve">',
            f"<title>{escape(name)}</title>",
            f'<rect width="{wide}" height="{tall}" fill="{GROUND}"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _panel(panel: Panel, answer: Answer, span: Span, marks: Sequence[Mark], box: Box) -> Iterator[str]:
    yield f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="3" fill="{PAPER}"/>'
    yield text(box.x + 8, box.y + 19, panel.title, 12.5, TEXT)
    if not answer.lines:
        yield text(box.x + box.width / 2, box.y + box.height / 2, "No data", 14, DIM, "middle")
        return
    match panel.kind:
        case "stat":
            yield from charts.number(panel, answer, box)
        case "table":
            yield from charts.table(panel, answer, span, box)
        case "state-timeline":
            yield from charts.timeline(panel, answer, span, marks, box)
        case "heatmap":
            yield from charts.heatmap(answer, span, marks, box)
        case "timeseries":
            yield from charts.curves(panel, answer, span, marks, box)
