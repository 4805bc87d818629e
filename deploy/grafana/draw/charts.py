"""A panel of each kind."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import cycle, pairwise

from deploy.grafana.draw.answers import Answer, Line, Span
from deploy.grafana.draw.frame import DIM, TEXT, Box, Entry, Frame, Mark, columns, text
from deploy.grafana.draw.units import ticks, written
from deploy.grafana.panel import Panel

MOST_ROWS = 4
COLOURS = ("#5794f2", "#73bf69", "#f2cc0c", "#b877d9", "#ff9830", "#8ab8ff", "#ffa6b0", "#37872d", "#a352cc", "#f2495c")
MEANT = {
    "green": "#56a64b",
    "red": "#e02f44",
    "dark-red": "#a3122b",
    "orange": "#ff780a",
    "super-light-orange": "#ffcb7d",
    "yellow": "#f2cc0c",
    "blue": "#3274d9",
    "light-blue": "#8ab8ff",
    "purple": "#a352cc",
    "text": "#9a9da5",
}
"""Grafana's names of colours, as it shows them."""
GOOD, WORRY, BAD = "#37872d", "#c4632b", "#a3293a"
HEAT = ("#123d2a", "#1c6b45", "#2f9e5f", "#6ecb78", "#c8f2a4")
EXEMPLAR = "#c0d8ff"


def number(panel: Panel, answer: Answer, box: Box) -> Iterator[str]:
    now = answer.lines[0].points[-1][1]
    tall = box.height - 32
    yield (
        f'<rect x="{box.x + 4}" y="{box.y + 28}" width="{box.width - 8}" height="{tall}" rx="3"'
        f' fill="{_judged(now, panel)}"/>'
    )
    yield text(box.x + box.width / 2, box.y + 28 + tall / 2 + 11, written(now, panel.unit), 30, "#fff", "middle")


def _judged(value: float, panel: Panel) -> str:
    worry, bad = panel.bounds or (float("inf"), float("inf"))
    if worry <= bad:
        return BAD if value >= bad else WORRY if value >= worry else GOOD
    return GOOD if value >= worry else WORRY if value >= bad else BAD


def table(panel: Panel, answer: Answer, span: Span, box: Box) -> Iterator[str]:
    """What is there at the end."""
    rows = [(line, line.points[-1]) for line in answer.lines]
    now = [(line, value) for line, (at, value) in rows if at > span.end - 2 * span.step_s]
    shares = (0.46, 0.2, 0.2, 0.14)
    lefts = [box.x + 12 + sum(shares[:each]) * (box.width - 20) for each in range(len(panel.states))]
    for left, column in zip(lefts, panel.states, strict=True):
        yield text(left, box.y + 44, column.text, 11, DIM)
    for row, (line, value) in enumerate(now):
        for left, column in zip(lefts, panel.states, strict=True):
            said = line.labels.get(column.value, written(value, panel.unit))
            yield text(left, box.y + 62 + 17 * row, said, 11, TEXT)


def timeline(panel: Panel, answer: Answer, span: Span, marks: Sequence[Mark], box: Box) -> Iterator[str]:
    """A row for each series, and in it a stretch for each state."""
    colours = {float(each.value): MEANT[each.colour] for each in panel.states}
    legend = [Entry(each.text, MEANT[each.colour]) for each in panel.states]
    wide = 14 + int(6 * max(len(line.name) for line in answer.lines))
    count = len(answer.lines)
    frame = Frame(box, span, count, wide, legend)
    yield from frame.around([(count - row - 0.5, line.name) for row, line in enumerate(answer.lines)], marks)
    tall = 0.7 * frame.height / count
    for row, line in enumerate(answer.lines):
        y = round(frame.up(count - row) + 0.15 * frame.height / count, 1)
        for start, end, value in _stretches(line.points, span):
            x = frame.at(start)
            yield (
                f'<rect x="{x}" y="{y}" width="{max(1, frame.at(end) - x):.1f}" height="{tall:.1f}"'
                f' fill="{colours[value]}" fill-opacity=".8"/>'
            )


def _stretches(points: Sequence[tuple[float, float]], span: Span) -> Iterator[tuple[float, float, float]]:
    start, value = points[0]
    last = start
    for at, now in points[1:]:
        if now != value or at - last > 1.5 * span.step_s:
            yield start, at if now != value else last, value
            start, value = at, now
        last = at
    yield start, last, value


def heatmap(answer: Answer, span: Span, marks: Sequence[Mark], box: Box) -> Iterator[str]:
    bands = _bands(answer.lines)
    frame = Frame(box, span, len(bands), left=66)
    edges = [float(edge) for edge, _ in bands]
    yield from frame.around([(row + 0.5, f"≤ {written(edge, 's')}") for row, edge in enumerate(edges)], marks)
    most = max((value for _, band in bands for value in band.values()), default=0) or 1
    wide = max(1.0, frame.width * span.step_s / (span.end - span.start)) + 0.3
    tall = frame.height / len(bands)
    for row, (_, band) in enumerate(bands):
        for at, value in band.items():
            if value > most / 1_000:
                colour = HEAT[min(len(HEAT) - 1, int((value / most) ** 0.5 * len(HEAT)))]
                yield (
                    f'<rect x="{frame.at(at)}" y="{frame.up(row + 1)}" width="{wide:.1f}" height="{tall:.1f}"'
                    f' fill="{colour}"/>'
                )
    for at, value in answer.exemplars:
        row = bisect_left(edges, value)
        if row < len(edges):
            yield _dot(frame.at(at), frame.up(row + 0.5))


def _bands(lines: Sequence[Line]) -> list[tuple[str, dict[float, float]]]:
    """Of cumulative buckets, what each holds that the one before does not. Those at the ends that nothing fell into are
    left out."""
    bands = []
    below: dict[float, float] = {}
    for line in sorted(lines, key=lambda line: float(line.labels["le"])):
        values = dict(line.points)
        bands.append((line.labels["le"], {at: value - below.get(at, 0.0) for at, value in values.items()}))
        below = values
    filled = [row for row, (_, band) in enumerate(bands) if max(band.values()) > 1e-9] or [0]
    return bands[filled[0] : filled[-1] + 1]


def curves(panel: Panel, answer: Answer, span: Span, marks: Sequence[Mark], box: Box) -> Iterator[str]:
    coloured = _coloured(panel, answer.lines)
    scale = ticks(_most(panel, answer.lines), panel.unit)
    frame = Frame(box, span, scale[-1], legend=_legend(panel, coloured, box))
    yield from frame.around([(each, written(each, panel.unit)) for each in scale], marks)
    limits = {query.legend for query in panel.queries if query.limit}
    stacked = [(line, colour) for line, colour in coloured if panel.stacked and line.name not in limits]
    yield from _stack(frame, stacked)
    for line, colour in coloured:
        if line.name in limits or not panel.stacked:
            yield from _curve(frame, line, colour, dashed=line.name in limits)
    for bound, name in zip(panel.bounds or (), ("orange", "red"), strict=False):
        if bound <= frame.most:
            path = f"M{frame.x} {frame.up(bound)}h{frame.width}"
            yield f'<path d="{path}" stroke="{MEANT[name]}" stroke-dasharray="6 4" stroke-opacity=".8"/>'
    for at, value in answer.exemplars:
        if value <= frame.most:
            yield _dot(frame.at(at), frame.up(value))


def _coloured(panel: Panel, lines: Sequence[Line]) -> list[tuple[Line, str]]:
    limits = {query.legend: MEANT["text"] for query in panel.queries if query.limit}
    meant = {name: MEANT[colour] for name, colour in panel.colours.items()} | limits
    left = cycle([colour for colour in COLOURS if colour not in meant.values()])
    return [(line, meant.get(line.name) or (next(left) if _top(line) > 0 else COLOURS[0])) for line in lines]


def _top(line: Line) -> float:
    return max(value for _, value in line.points)


def _most(panel: Panel, lines: Sequence[Line]) -> float:
    if not panel.stacked:
        return max(map(_top, lines))
    limits = {query.legend for query in panel.queries if query.limit}
    sums: dict[float, float] = {}
    for line in lines:
        for at, value in line.points:
            sums[at] = max(sums.get(at, 0), value) if line.name in limits else sums.get(at, 0) + value
    return max(sums.values())


def _legend(panel: Panel, coloured: Sequence[tuple[Line, str]], box: Box) -> list[Entry]:
    """As many as there is room for, the largest first. What was never more than 0 is not named, unless nothing was."""
    tops = [(_top(line), line, colour) for line, colour in coloured]
    above = [each for each in tops if each[0] > 0]
    largest = sorted(above or tops[:1], key=lambda each: -each[0])
    entries = [
        Entry(f"{line.name}  {written(line.points[-1][1], panel.unit)}, max {written(most, panel.unit)}", colour)
        for most, line, colour in largest
    ]
    room = MOST_ROWS * columns(entries, box)
    shown = entries if len(entries) <= room and len(entries) == len(tops) else entries[: room - 1]
    if others := len(tops) - len(shown):
        shown.append(Entry(f"and {others} more" + (" at 0" if len(shown) == len(above) else ""), "none"))
    return shown


def _curve(frame: Frame, line: Line, colour: str, *, dashed: bool) -> Iterator[str]:
    dashes = ' stroke-dasharray="8 6"' if dashed else ""
    for run in _runs(line.points, frame.span):
        path = " ".join(f"{frame.at(at)},{frame.up(value)}" for at, value in _bends(run))
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dashes}/>'


def _stack(frame: Frame, lines: Sequence[tuple[Line, str]]) -> Iterator[str]:
    times = sorted({at for line, _ in lines for at, _ in line.points})
    floor = dict.fromkeys(times, 0.0)
    for line, colour in lines:
        values = dict(line.points)
        if _top(line) <= 0:
            continue
        roof = {at: floor[at] + values.get(at, 0.0) for at in times}
        for first, last in _filled(times, values):
            there = times[first:last]
            path = " ".join(f"{frame.at(at)},{frame.up(value)}" for at, value in _bends([(t, roof[t]) for t in there]))
            under = [(at, floor[at]) for at in reversed(there)]
            back = " ".join(f"{frame.at(at)},{frame.up(value)}" for at, value in _bends(under))
            yield f'<polygon points="{path} {back}" fill="{colour}" fill-opacity=".6" stroke="{colour}"/>'
        floor = roof


def _filled(times: Sequence[float], values: dict[float, float]) -> Iterator[tuple[int, int]]:
    """Stretches in which there is something, each from the time before it to the one after it."""
    there = [index for index, at in enumerate(times) if values.get(at, 0.0) > 0]
    start = there[0]
    for before, after in pairwise([*there, len(times) + 2]):
        if after - before > 2:
            yield max(0, start - 1), before + 2
            start = after


def _runs(points: Sequence[tuple[float, float]], span: Span) -> Iterator[list[tuple[float, float]]]:
    """A curve ends where there is no value, and begins again behind it."""
    run = [points[0]]
    for before, after in pairwise(points):
        if after[0] - before[0] > 1.5 * span.step_s:
            yield run
            run = []
        run.append(after)
    yield run


def _bends(run: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without the points in the middle of level stretches."""
    inner = [
        here for before, here, after in zip(run, run[1:], run[2:], strict=False) if not before[1] == here[1] == after[1]
    ]
    return [run[0], *inner, *run[-1:]]


def _dot(x: float, y: float) -> str:
    return f'<circle cx="{x}" cy="{y}" r="1.7" fill="{EXEMPLAR}" fill-opacity=".75"/>'
